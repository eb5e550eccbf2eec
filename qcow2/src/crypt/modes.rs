//! Cipher modes over sectors: XTS, CBC, CTR and ECB.
//!
//! Blocks are handed to the cipher many at once, as far as a mode lets them be: that is
//! what the CPU's AES instructions need to be fast.

use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, consts::U16};

use super::{SECTOR, cipher::OneBlock, iv::IvGenerator};

/// 128 bits.
pub(super) type Block = Array<u8, U16>;

/// Blocks of a sector.
const BLOCKS: usize = 512 / 16;
/// Sectors that are worked on together.
const TOGETHER: usize = 8;

/// What sectors are encrypted with. The data is whole sectors, of which the first has the
/// number given.
pub(super) trait SectorCipher: std::fmt::Debug + Send + Sync {
    /// Encrypts in place.
    fn encrypt(&self, first: u64, data: &mut [u8]);
    /// Decrypts in place.
    fn decrypt(&self, first: u64, data: &mut [u8]);
}

/// A block cipher of 128 bits a block.
pub(super) trait Cipher128:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync
{
}

impl<C> Cipher128 for C where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync
{
}

/// How blocks of a sector depend on each other and on its vector.
#[derive(Debug)]
pub(super) enum Mode {
    Ecb,
    Cbc,
    Ctr,
    /// With the cipher of the tweak, which has half of the key.
    Xts(Box<dyn OneBlock>),
}

/// A block cipher in a mode.
pub(super) struct Sectors<C> {
    pub(super) cipher: C,
    pub(super) mode: Mode,
    pub(super) iv: IvGenerator,
}

impl<C> std::fmt::Debug for Sectors<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sectors").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Encrypt,
    Decrypt,
}

impl<C: Cipher128> Sectors<C> {
    fn run(&self, way: Way, first: u64, data: &mut [u8]) {
        debug_assert!((data.len() as u64).is_multiple_of(SECTOR));
        let (blocks, _) = Array::slice_as_chunks_mut(data);
        if matches!(self.mode, Mode::Ecb) {
            self.blocks(way, blocks);
            return;
        }
        let mut number = first;
        for sectors in blocks.chunks_mut(BLOCKS * TOGETHER) {
            let mut vectors = [Block::default(); TOGETHER];
            for vector in &mut vectors {
                *vector = self.iv.vector(number);
                number = number.wrapping_add(1);
            }
            if let Mode::Xts(tweak) = &self.mode {
                tweak.encrypt_all(&mut vectors);
            }
            for (sector, vector) in sectors.chunks_mut(BLOCKS).zip(vectors) {
                match self.mode {
                    Mode::Ecb => {}
                    Mode::Cbc => self.cbc(way, vector, sector),
                    Mode::Ctr => self.ctr(vector, sector),
                    Mode::Xts(_) => self.xts(way, vector, sector),
                }
            }
        }
    }

    fn blocks(&self, way: Way, blocks: &mut [Block]) {
        match way {
            Way::Encrypt => self.cipher.encrypt_blocks(blocks),
            Way::Decrypt => self.cipher.decrypt_blocks(blocks),
        }
    }

    /// IEEE 1619; the vector is encrypted already.
    fn xts(&self, way: Way, vector: Block, sector: &mut [Block]) {
        let mut tweaks = [Block::default(); BLOCKS];
        let mut tweak = u128::from_le_bytes(vector.into());
        for place in &mut tweaks {
            *place = tweak.to_le_bytes().into();
            // Multiplied by x in GF(2^128), x^128 + x^7 + x^2 + x + 1.
            let carry = tweak >> 127;
            tweak = (tweak << 1) ^ (carry * 0x87);
        }
        xor(sector, &tweaks);
        self.blocks(way, sector);
        xor(sector, &tweaks);
    }

    fn cbc(&self, way: Way, vector: Block, sector: &mut [Block]) {
        match way {
            Way::Encrypt => {
                let mut before = vector;
                for block in sector {
                    xor(std::slice::from_mut(block), &[before]);
                    self.cipher.encrypt_block(block);
                    before = *block;
                }
            }
            Way::Decrypt => {
                let mut before = [vector; BLOCKS];
                for (before, block) in before.iter_mut().skip(1).zip(&*sector) {
                    *before = *block;
                }
                self.cipher.decrypt_blocks(sector);
                xor(sector, &before);
            }
        }
    }

    /// The counter is the vector, big-endian.
    fn ctr(&self, vector: Block, sector: &mut [Block]) {
        let mut stream = [Block::default(); BLOCKS];
        let mut counter = u128::from_be_bytes(vector.into());
        for place in &mut stream {
            *place = counter.to_be_bytes().into();
            counter = counter.wrapping_add(1);
        }
        self.cipher.encrypt_blocks(&mut stream);
        xor(sector, &stream);
    }
}

fn xor(to: &mut [Block], from: &[Block]) {
    for (to, from) in to.iter_mut().zip(from) {
        let sum = u128::from_ne_bytes((*to).into()) ^ u128::from_ne_bytes((*from).into());
        *to = sum.to_ne_bytes().into();
    }
}

impl<C: Cipher128> SectorCipher for Sectors<C> {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.run(Way::Encrypt, first, data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.run(Way::Decrypt, first, data);
    }
}

#[cfg(test)]
mod tests {
    use crate::crypt::{cipher::CipherSpec, tests::hex};

    /// Key material of IEEE 1619's vectors: digits of e, then of pi.
    const KEY: &str = "2718281828459045235360287471352662497757247093699959574966967627\
                       3141592653589793238462643383279502884197169399375105820974944592";

    /// First and last 32 bytes of a sector of 0, 1, 2, …; also that it is decrypted, and
    /// that many sectors are encrypted as each by itself.
    fn encrypted(cipher: &str, mode: &str, key: &[u8], number: u64) -> [Vec<u8>; 2] {
        let spec = CipherSpec::named(cipher.as_bytes(), mode.as_bytes(), key.len()).unwrap();
        let sectors = spec.with_key(key).unwrap();
        let plain: Vec<u8> = (0..512_u16).map(|i| i.to_le_bytes()[0]).collect();
        let mut data = plain.clone();
        sectors.encrypt(number, &mut data);
        let mut many = plain.repeat(20);
        sectors.encrypt(number.wrapping_sub(13), &mut many);
        assert_eq!(many[13 * 512..14 * 512], data, "{mode}");
        sectors.decrypt(number.wrapping_sub(13), &mut many);
        assert_eq!(many, plain.repeat(20), "{mode}");
        [data[..32].to_vec(), data[480..].to_vec()]
    }

    /// XTS: vectors 4 and 10 of IEEE 1619. The others by openssl.
    #[test]
    fn known_answers() {
        let key = hex(KEY);
        let (aes_256, aes_128) = (&key[..32], [&key[..16], &key[32..48]].concat());
        for (mode, key, number, first, last) in [
            (
                "xts-plain64",
                &aes_128[..],
                0,
                "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
                "eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568",
            ),
            (
                "xts-plain64",
                &key[..],
                0xff,
                "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
                "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
            ),
            (
                "cbc-plain64",
                aes_256,
                0x1_0000_0005,
                "745e9c755db9fd469062113af11af867e38d32a402f0ff246033620c332d7bb9",
                "76058a4696d6fba89149e922a54b0cd57e9783136dad7a419945b46436d99329",
            ),
            (
                "ctr-plain64",
                aes_256,
                0x1_0000_0005,
                "e9ded2566507f92098d0de23a3ce40eed359cfb82a9654cd111e576871017264",
                "f3421ca92131871745913bc0f16ee4d966ca2008fd85e75ca5a2899fa67fd139",
            ),
            (
                "cbc-essiv:sha256",
                aes_256,
                0x1_0000_0005,
                "d12db2a9c004288e5481eb2511688c30ce3a4499b44817f825cdc40b8ca2533f",
                "91d297e731fd78507dc834ac65d03b6552c5e29d2321f7619231ac1bd441f375",
            ),
        ] {
            let expected = [hex(first), hex(last)];
            assert_eq!(encrypted("aes", mode, key, number), expected, "{mode}");
        }
    }

    #[test]
    fn every_cipher_decrypts_what_it_encrypted() {
        let key = hex(KEY);
        for (cipher, len) in [
            ("aes", 24),
            ("serpent", 16),
            ("serpent", 32),
            ("twofish", 24),
        ] {
            for mode in ["ecb-plain", "cbc-plain", "ctr-plain", "cbc-plain64"] {
                let key = &key[..len];
                encrypted(cipher, mode, key, 77);
                // `plain` has 32 bits only.
                let of = |number| encrypted(cipher, mode, key, number);
                let wraps = mode != "cbc-plain64";
                assert_eq!(of(5) == of(5 + (1 << 32)), wraps, "{mode}");
            }
            encrypted(
                cipher,
                "xts-essiv:sha256",
                &[&key[..len], &key[..len]].concat(),
                3,
            );
        }
    }

    #[test]
    fn what_is_not_offered_is_called_by_its_name() {
        for (cipher, mode, len, message) in [
            (
                "cast5",
                "cbc-plain64",
                16,
                "Algorithm 'cast5' with key size 16 bytes not supported",
            ),
            (
                "aes",
                "xts-plain64",
                33,
                "Algorithm 'aes' with key size 16 bytes not supported",
            ),
            (
                "aes",
                "xts",
                32,
                "Unexpected cipher mode string format 'xts'",
            ),
            ("aes", "lrw-plain64", 32, "Cipher mode 'lrw' not supported"),
            ("aes", "cbc-benbi", 32, "IV generator 'benbi' not supported"),
            (
                "aes",
                "cbc-essiv:md5",
                32,
                "Hash algorithm 'md5' not supported",
            ),
        ] {
            let spec = CipherSpec::named(cipher.as_bytes(), mode.as_bytes(), len);
            assert_eq!(spec.unwrap_err().to_string(), message);
        }
        let spec = CipherSpec::named(b"aes", b"cbc-essiv:sha1", 32).unwrap();
        let error = spec.with_key(&[1; 32]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "No AES cipher with key size 20 available"
        );
    }
}
