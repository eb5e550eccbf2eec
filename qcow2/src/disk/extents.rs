//! [`Extents`]: all extents of a range, asked for in portions.

use std::{collections::VecDeque, ops::Range};

use super::{Disk, Extent};
use crate::{Error, Result};

/// The extents of a range, in order and without gaps. Adjoining ones that say the same
/// are one, however long. See [`DiskExt::extents`](super::DiskExt::extents).
#[derive(Debug)]
pub struct Extents<'a, D: ?Sized> {
    disk: &'a D,
    /// What has not been asked for.
    rest: Range<u64>,
    /// What was answered and isn't given out.
    answered: VecDeque<Extent>,
    /// A buffer for answers.
    buffer: Vec<Extent>,
    /// Comes after what was answered.
    error: Option<Error>,
}

impl<'a, D: Disk + ?Sized> Extents<'a, D> {
    pub(super) fn new(disk: &'a D, range: Range<u64>) -> Self {
        let rest = range.start..range.end.min(disk.size());
        Self {
            disk,
            rest,
            answered: VecDeque::new(),
            buffer: Vec::new(),
            error: None,
        }
    }

    /// Leaves out what comes before `at`; what wasn't asked for by then never is.
    pub fn skip_to(&mut self, at: u64) {
        self.rest.start = self.rest.start.max(at);
        while let Some(first) = self.answered.pop_front() {
            if let Some(wanted) = first.within(&(at..first.end())) {
                self.answered.push_front(wanted);
                return;
            }
        }
        if let Some(Error::Guest { start, length, .. }) = &self.error
            && start.0.saturating_add(*length) <= at
        {
            self.error = None;
        }
    }

    /// Asks for more until there are two extents, an error, or nothing is left.
    fn ask(&mut self) {
        while self.answered.len() < 2 && self.error.is_none() && !self.rest.is_empty() {
            self.buffer.clear();
            let range = self.rest.clone();
            if let Err(error) = self.disk.query(range.clone(), &mut self.buffer) {
                // Behind a bad part the others are told; behind any other error nothing is.
                self.rest.start = match &error {
                    Error::Guest { start, length, .. } => start.0.saturating_add(*length),
                    _ => range.end,
                };
                if self.rest.start <= range.start {
                    self.rest.start = range.end;
                }
                self.error = Some(error);
                return;
            }
            let told = self.buffer.last().map_or(range.end, Extent::end);
            self.rest.start = told.max(range.start.saturating_add(1));
            for extent in &self.buffer {
                if !self
                    .answered
                    .back_mut()
                    .is_some_and(|last| last.join(extent))
                {
                    self.answered.push_back(*extent);
                }
            }
        }
    }
}

impl<D: Disk + ?Sized> Iterator for Extents<'_, D> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        // The last one may go on in the next answer.
        if self.answered.len() < 2 {
            self.ask();
        }
        match self.answered.pop_front() {
            Some(extent) => Some(Ok(extent)),
            None => self.error.take().map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        addr::GuestOffset,
        disk::{DiskExt, ExtentKind, bad},
        io::Storage,
    };

    /// Tells of 10 bytes at a time: byte 3 and the tens from 50 to 69 are bad, and those
    /// from 100 on are of another kind.
    #[derive(Debug)]
    struct Odd;

    impl Disk for Odd {
        fn name(&self) -> &str {
            "odd"
        }

        fn size(&self) -> u64 {
            200
        }

        fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
            let start = range.start;
            if start == 3 || (50..70).contains(&start) {
                let end = if start == 3 { 4 } else { 70 };
                return Err(bad(start, end - start, Error::NotQcow2));
            }
            let end = if start < 3 { 3 } else { (start / 10 + 1) * 10 };
            out.push(Extent {
                start: GuestOffset(start),
                length: end.min(range.end) - start,
                kind: if start < 100 {
                    ExtentKind::Data
                } else {
                    ExtentKind::Zero
                },
                compressed: false,
                host: None,
                hole: false,
                depth: 0,
            });
            Ok(())
        }

        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }

        fn file(&self) -> Option<&Arc<dyn Storage>> {
            None
        }
    }

    fn told(range: Range<u64>) -> Vec<(u64, u64, char)> {
        let told = |extent: Result<Extent>| match extent {
            Ok(e) if e.kind == ExtentKind::Data => (e.start.0, e.end(), 'd'),
            Ok(e) => (e.start.0, e.end(), 'z'),
            Err(Error::Guest { start, length, .. }) => (start.0, start.0 + length, '!'),
            Err(other) => panic!("{other}"),
        };
        Odd.extents(range).map(told).collect()
    }

    #[test]
    fn answers_are_joined_and_errors_stand_in_their_place() {
        let expected = [
            (0, 3, 'd'),
            (3, 4, '!'),
            (4, 50, 'd'),
            (50, 70, '!'),
            (70, 100, 'd'),
            (100, 200, 'z'),
        ];
        assert_eq!(told(0..1000), expected);
        assert_eq!(told(55..75), [(55, 70, '!'), (70, 75, 'd')]);
        assert_eq!(told(60..65), [(60, 70, '!')]);
        assert_eq!(told(200..300), []);
        let mut extents = Odd.extents(0..200);
        extents.skip_to(2);
        let ends = |extent: Option<Result<Extent>>| {
            extent.map(|extent| extent.map(|e| (e.start.0, e.end())).unwrap())
        };
        assert_eq!(ends(extents.next()), Some((2, 3)));
        extents.skip_to(75);
        extents.skip_to(71);
        assert_eq!(ends(extents.next()), Some((75, 100)));
        extents.skip_to(500);
        assert_eq!(ends(extents.next()), None);
        assert_eq!(told(7..7), []);
    }

    #[test]
    fn a_range_beyond_the_end_is_refused() {
        assert!(Odd.check_range(199, 1).is_ok());
        assert!(Odd.check_range(200, 0).is_ok());
        for (offset, len) in [(200, 1), (u64::MAX, 1), (u64::MAX, usize::MAX)] {
            assert!(Odd.check_range(offset, len).is_err());
        }
    }
}
