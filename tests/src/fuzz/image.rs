//! Stub.
use super::Input;
/// h
pub fn header(_: &[u8]) {}
/// d
pub fn directory_and_tables(_: &[u8]) {}
/// i
pub fn image(_: &[u8]) {}
pub(super) fn header_seeds() -> Vec<Input> {
    vec![(String::new(), vec![])]
}
pub(super) fn directory_seeds() -> Vec<Input> {
    vec![(String::new(), vec![])]
}
pub(super) fn image_seeds() -> Vec<Input> {
    vec![(String::new(), vec![])]
}
