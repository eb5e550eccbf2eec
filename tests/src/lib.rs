//! Helpers shared by the tests that need several crates or a real QEMU.
