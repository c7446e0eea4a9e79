//! The files of a window, and the system calls that move its content.

use super::transfer::Files;
use super::vault::Vault;
use super::{Emptied, part_size, pool};
use crate::sys::known::KnownFile;
use crate::sys::pipe::Pipes;
use crate::sys::{SysError, file, left_out};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct RealFiles {
    pub(super) file: Arc<KnownFile>,
    pub(super) vault: Vault,
    pub(super) len: usize,
    pub(super) emptied: Emptied,
}

impl RealFiles {
    /// Each move begins with [`check`](Files::check).
    fn window(&self) -> BorrowedFd<'_> {
        self.file.unchecked()
    }
}

impl Files for RealFiles {
    type Pipes = Pipes;

    fn part(&self) -> usize {
        part_size()
    }

    fn check(&self) -> Result<(), SysError> {
        self.file.get().map(drop)
    }

    fn take_pipes(&self) -> Result<Pipes, SysError> {
        pool::take(self.len)
    }

    fn let_go(&self, pipes: &Pipes) {
        pipes.clear();
    }

    fn give_back(&self, pipes: Pipes) {
        pool::give_back(pipes);
    }

    fn are_there(&self, pipes: &Pipes) -> bool {
        pipes.check(self.len).is_ok()
    }

    fn hold(&self, pipes: &Pipes, part: Range<usize>) -> Result<usize, SysError> {
        pipes.hold(self.window(), part.start, part.len())
    }

    fn wait_for_peers(&self) -> Result<(), SysError> {
        file::wait_for_lock(self.window(), self.len)
    }

    fn take_out(&self, part: Range<usize>) -> Result<(), SysError> {
        match self.emptied {
            _ if left_out("emptying") => Ok(()),
            Emptied::Short => file::truncate(self.window(), part.start),
            Emptied::Ones => {
                // A huge page goes as a whole, beyond the file's end too.
                let whole = if part.end == self.len { part.len().next_multiple_of(part_size()) } else { part.len() };
                file::punch(self.window(), part.start, whole)
            }
        }
    }

    fn refuse(&self, part: Range<usize>) {
        if self.emptied == Emptied::Ones {
            // Without memory for the ones the part reads as zeroes: just as unreachable.
            let _ = file::fill_with_ones(self.window(), part.start, part.len());
        }
    }

    fn copy(&self, pipes: &Pipes, part: Range<usize>) -> Result<usize, SysError> {
        self.vault.take(pipes, part)
    }

    fn clear(&self, part: Range<usize>) -> Result<(), SysError> {
        self.vault.clear(part)
    }

    fn write(&self, part: Range<usize>) -> Result<(), SysError> {
        self.vault.write_to(self.window(), part)
    }

    fn cut(&self) -> Result<(), SysError> {
        file::truncate_if_longer(self.window(), self.len)
    }
}
