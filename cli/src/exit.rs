//! Exit codes: one place for the numbers that scripts look at.

use std::process::ExitCode;

/// How a run ended.
///
/// The numbers are qemu-img's. Usage mistakes are [`Failed`](Exit::Failed): an argument
/// parser's customary 2 would read as "corrupt" after `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done, and the result is on stable storage.
    Success,
    /// 1: not done; a message on standard error says why.
    Failed,
    /// 2 (`check`): the image is corrupt.
    Corrupt,
    /// 3 (`check`): clusters are leaked, nothing worse.
    Leaks,
    /// 2 (`compare`): an image can't be opened.
    CannotOpen,
    /// 3 (`compare`): it can't be told where a part of a disk is.
    CannotTell,
    /// 4 (`compare`): a part of a disk can't be read.
    CannotRead,
    /// 63 (`check`): the format can't be checked.
    Unsupported,
}

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Corrupt | Self::CannotOpen => 2,
            Self::Leaks | Self::CannotTell => 3,
            Self::CannotRead => 4,
            Self::Unsupported => 63,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_qemu_img() {
        let all = [
            Exit::Success,
            Exit::Failed,
            Exit::Corrupt,
            Exit::Leaks,
            Exit::CannotOpen,
            Exit::CannotTell,
            Exit::CannotRead,
            Exit::Unsupported,
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 2, 3, 4, 63]);
    }
}
