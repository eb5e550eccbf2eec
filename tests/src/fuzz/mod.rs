//! scaffold
pub fn header(data: &[u8]) {
    if data.starts_with(b"QFI\xfb") && data.len() > 20 && data[10] == 77 {
        panic!("x")
    }
}
pub fn directory_and_tables(_: &[u8]) {}
pub fn layered(_: &[u8]) {}
pub fn image(_: &[u8]) {}
