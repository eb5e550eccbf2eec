//! CRC-32C (Castagnoli), by the processor's instruction where there is one.

/// A CRC-32C in the making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc32c(u32);

impl Crc32c {
    pub(crate) const fn new() -> Self {
        Self(0)
    }

    pub(crate) const fn finish(self) -> u32 {
        self.0
    }

    #[cfg(feature = "std")]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    #[cfg(not(feature = "std"))]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = by_table(self.0, bytes);
    }
}

/// The polynomial 0x1EDC6F41, bits reversed.
#[cfg(any(test, not(feature = "std")))]
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The portable way, a byte at a time.
#[cfg(any(test, not(feature = "std")))]
fn by_table(crc: u32, bytes: &[u8]) -> u32 {
    static TABLE: [u32; 256] = table();
    let mut crc = !crc;
    for byte in bytes {
        let [low, ..] = crc.to_le_bytes();
        let entry = TABLE
            .get(usize::from(low ^ byte))
            .copied()
            .unwrap_or_default();
        crc = crc >> 8 ^ entry;
    }
    !crc
}

#[cfg(any(test, not(feature = "std")))]
#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "below 256"
)]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 {
                crc >> 1 ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_standard() {
        let mut crc = Crc32c::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.finish(), 0xe306_9283);
        assert_eq!(by_table(0, b"123456789"), 0xe306_9283);
    }
}
