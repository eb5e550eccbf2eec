//! Which of `n` things happened: all combinations if they are few, otherwise those
//! that find mistakes most often, and random ones.

/// The choice of subsets of `n` things, each as `n` times "is in it".
///
/// Up to `2^exhaustive` all of them. Beyond that every prefix, every suffix, each one
/// missing, each one alone, and `random` random ones.
pub(super) fn of(
    n: usize,
    exhaustive: u32,
    random: usize,
    mut dice: Dice,
) -> Box<dyn Iterator<Item = Vec<bool>>> {
    if n <= usize::try_from(exhaustive.min(20)).unwrap_or(0) {
        return Box::new(
            (0..1_u64 << n).map(move |bits| (0..n).map(|i| bits >> i & 1 == 1).collect()),
        );
    }
    let pick = move |test: fn(usize, usize) -> bool, k| (0..n).map(|i| test(i, k)).collect();
    let prefixes = (0..=n).map(move |k| pick(|i, k| i < k, k));
    let suffixes = (1..n).map(move |k| pick(|i, k| i >= k, k));
    // Without the first and the last one, which prefixes and suffixes have.
    let inner = 1..n.saturating_sub(1).max(1);
    let missing = inner.clone().map(move |k| pick(|i, k| i != k, k));
    let alone = inner.map(move |k| pick(|i, k| i == k, k));
    let rolled = (0..random).map(move |_| dice.choose(n));
    Box::new(
        prefixes
            .chain(suffixes)
            .chain(missing)
            .chain(alone)
            .chain(rolled),
    )
}

/// Reproducible random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A random subset, of a random density.
    pub(super) fn choose(&mut self, n: usize) -> Vec<bool> {
        let of_eight = self.roll() % 7 + 1;
        (0..n).map(|_| self.roll() % 8 < of_eight).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn few_things_are_combined_in_every_way() {
        for n in 0..=8 {
            let all: HashSet<_> = of(n, 8, 0, Dice(0)).collect();
            assert_eq!(all.len(), 1 << n);
            assert!(all.iter().all(|s| s.len() == n));
        }
    }

    #[test]
    fn many_things_have_every_prefix_suffix_missing_one_and_lone_one() {
        for n in 9..40 {
            let listed: Vec<_> = of(n, 8, 0, Dice(0)).collect();
            let sets: HashSet<_> = listed.iter().cloned().collect();
            assert_eq!(sets.len(), listed.len(), "none twice");
            for k in 0..n {
                let with = |f: &dyn Fn(usize) -> bool| (0..n).map(f).collect::<Vec<_>>();
                assert!(sets.contains(&with(&|i| i < k)));
                assert!(sets.contains(&with(&|i| i >= k)));
                assert!(sets.contains(&with(&|i| i == k)));
                assert!(sets.contains(&with(&|i| i != k)));
            }
            assert!(sets.contains(&vec![true; n]));
        }
    }

    #[test]
    fn random_ones_depend_on_the_seed_only() {
        let roll = |seed| of(30, 8, 50, Dice(seed)).collect::<Vec<_>>();
        assert_eq!(roll(1), roll(1));
        assert_ne!(roll(1), roll(2));
        let sizes: HashSet<usize> = roll(1)
            .iter()
            .rev()
            .take(50)
            .map(|s| s.iter().filter(|b| **b).count())
            .collect();
        assert!(sizes.len() > 10, "dense and sparse ones: {sizes:?}");
    }
}
