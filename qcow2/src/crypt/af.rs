//! Anti-forensic splitting: the key is spread over thousands of stripes, so that losing
//! any of them loses the key.
//!
//! Source: "LUKS On-Disk Format Specification Version 1.2.3", chapter 2.4.

use zeroize::Zeroizing;

use super::hash::Hash;

/// The key that `stripes`, each of `len` bytes, were made of.
pub(super) fn merge(stripes: &[u8], len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; len]);
    let mut left = stripes.chunks_exact(len.max(1)).peekable();
    while let Some(stripe) = left.next() {
        xor(&mut key, stripe);
        if left.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    key
}

/// Makes the last of `stripes` such that all of them [`merge`] to `key`; the others are
/// random.
pub(super) fn split(stripes: &mut [u8], key: &[u8], hash: Hash) {
    let Some((random, last)) = stripes
        .len()
        .checked_sub(key.len())
        .and_then(|at| stripes.split_at_mut_checked(at))
    else {
        return;
    };
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    for stripe in random.chunks_exact(key.len().max(1)) {
        xor(&mut sum, stripe);
        diffuse(&mut sum, hash);
    }
    last.copy_from_slice(key);
    xor(last, &sum);
}

fn xor(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}

/// Replaces each piece of a digest's length by the digest of its number and itself.
fn diffuse(bytes: &mut [u8], hash: Hash) {
    let mut old = Zeroizing::new([0; 64]);
    for (number, piece) in (0_u32..).zip(bytes.chunks_mut(hash.len())) {
        let old = old.get_mut(..piece.len()).unwrap_or_default();
        old.copy_from_slice(piece);
        hash.digest(&[&number.to_be_bytes(), old], piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_is_merged_again() {
        for (hash, len) in [
            (Hash::Sha1, 64_usize),
            (Hash::Sha256, 16),
            (Hash::Sha512, 64),
            (Hash::Sha256, 33),
        ] {
            let key: Vec<u8> = (0..len).map(|i| (i * 7).to_le_bytes()[0]).collect();
            let mut stripes: Vec<u8> = (0..len * 100)
                .map(|i| (i * i / 3).to_le_bytes()[0])
                .collect();
            split(&mut stripes, &key, hash);
            assert_eq!(*merge(&stripes, len, hash), key);
            stripes[len * 50] ^= 1;
            assert_ne!(*merge(&stripes, len, hash), key);
        }
    }
}
