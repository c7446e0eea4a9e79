//! Windows: the file that a region's mappings and other processes map, and the private file that keeps the content while
//! nothing may reach it.
//!
//! The kernel unmaps the pages that leave a file from every mapping of every process, whatever that process is doing. So a
//! window is taken away from all of them by emptying it:
//!
//! | | window | a pipe | vault |
//! |---|---|---|---|
//! | filled | the content | | as it was the last time |
//! | [`Window::empty`], for each part | the content | holds the same pages | |
//! | | emptied: unmapped everywhere | the pages, with every store that was made | |
//! | | | | the content, copied from the pages |
//! | [`Window::fill`], for each part | a copy of the content | | the content |
//!
//! A store is made to the page that a mapping still has, and then it is in the pipe's page too, or it faults. Copying first
//! and emptying after that would lose the stores in between.
//!
//! All pages of both files exist from the start, and those of the window have been written: the kernel holds a page that
//! was never written as zeroes instead of as itself. A peer with a descriptor for writing can truncate the window, grow it,
//! punch holes or write at any moment. That costs content, and nothing else: the vault is never shared.

use crate::sync::inside::Mutex;
use crate::sys::SysError;
use crate::sys::file;
use crate::sys::known::KnownFile;
use crate::sys::left_out;
use crate::sys::map::{self, Sealed};
use crate::sys::pipe::Pipe;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is held at once, in bytes: a huge page of a system whose base pages have 4 KiB. Any peer can put one into the
/// window (MADV_COLLAPSE). Where only a part of one is emptied, the kernel zeroes that part, and the pipe would hold zeroes.
const HELD: usize = 2 << 20;

/// What a peer's access gets while the window is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// SIGBUS or EFAULT, as beyond the end of any file.
    Short,
    /// All-ones; stores go nowhere.
    Ones,
}

/// A window and its vault.
#[derive(Debug)]
pub(crate) struct Window {
    file: KnownFile,
    vault: KnownFile,
    len: usize,
    emptied: Emptied,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    pipe: Pipe,
    /// The vault has the content, and the window nothing of it.
    withdrawn: bool,
}

/// The changes that peers have made to a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Bytes of content that a peer had cut off.
    pub(crate) lost: usize,
}

impl Window {
    /// A window of `len` zero bytes, and its file; with the names of the window and of the vault. `len` is a multiple of the page size.
    pub(crate) fn make([name, vault]: [&CStr; 2], len: usize, emptied: Emptied) -> Result<(OwnedFd, Self), SysError> {
        let fd = map::memfd(name, len as u64, 0)?;
        file::keep_from_other_users(fd.as_fd())?;
        map::seal(fd.as_fd(), if emptied == Emptied::Ones { Sealed::Size } else { Sealed::Nothing })?;
        if !left_out("writing the window's pages") {
            file::fill_with_zeroes(fd.as_fd(), 0, len)?;
        }
        let vault = map::memfd(vault, len as u64, 0)?;
        map::seal(vault.as_fd(), Sealed::Size)?;
        file::allocate(vault.as_fd(), len as u64)?;
        let pipe = Pipe::new(len.min(HELD))?;
        let window = Self {
            file: KnownFile::new(map::dup(fd.as_fd())?),
            vault: KnownFile::new(vault),
            len,
            emptied,
            content: Mutex::new(Content { pipe, withdrawn: false }),
        };
        Ok((fd, window))
    }

    /// The window's file, and the vault's.
    pub(crate) fn files(&self) -> [&KnownFile; 2] {
        [&self.file, &self.vault]
    }

    /// True if the vault has the content.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.content.lock_quietly().withdrawn
    }

    /// A descriptor of the window for another process: an open file of its own, so that no flag or lock that is put on it
    /// concerns the region's.
    pub(crate) fn reopen(&self, writable: bool) -> Result<OwnedFd, SysError> {
        file::reopen(self.file.get()?, writable)
    }

    /// When it returns, nothing reaches the content by the window, and the vault has it, with every store to it that had
    /// returned. On an error the window is as before.
    pub(crate) fn empty(&self) -> Result<Damage, SysError> {
        let mut content = self.content.lock_quietly();
        if content.withdrawn {
            return Ok(Damage::default());
        }
        let emptied = self.empty_from(&mut content, self.len);
        content.withdrawn = emptied.is_ok();
        emptied
    }

    /// Makes the content reachable by the window again. On an error the window is empty as before.
    pub(crate) fn fill(&self) -> Result<(), SysError> {
        let mut content = self.content.lock_quietly();
        if !content.withdrawn {
            return Ok(());
        }
        self.fill_up(&mut content)?;
        content.withdrawn = false;
        Ok(())
    }

    /// Empties the window for good, whatever becomes of its content.
    pub(crate) fn discard(&self) -> Result<(), SysError> {
        self.drop_part(self.file.get()?, 0, self.len)
    }

    /// Empties the first `len` bytes, from the end backwards: a file is shortened at its end.
    fn empty_from(&self, content: &mut Content, len: usize) -> Result<Damage, SysError> {
        let (file, vault) = (self.file.get()?, self.vault.get()?);
        if content.pipe.check().is_err() {
            content.pipe = Pipe::new(content.pipe.room)?;
        }
        let pipe = &content.pipe;
        let mut damage = Damage::default();
        let step = pipe.room.min(HELD);
        let mut end = len;
        while end > 0 {
            let start = (end - 1) / step * step;
            let emptied = self.empty_part(pipe, file, vault, start, end - start);
            match emptied {
                Ok(lost) => damage.lost += lost,
                Err(e) => {
                    // What was emptied goes back; the content of the part itself is where it was.
                    pipe.clear();
                    let _ = self.fill_part(pipe, file, vault, end, len);
                    return Err(e);
                }
            }
            end = start;
        }
        Ok(damage)
    }

    /// Empties the part from `start` on, `len` bytes. Returns how many bytes of it a peer had cut off. On an error its
    /// content is where it was.
    fn empty_part(
        &self,
        pipe: &Pipe,
        file: BorrowedFd<'_>,
        vault: BorrowedFd<'_>,
        start: usize,
        len: usize,
    ) -> Result<usize, SysError> {
        if left_out("holding before emptying") {
            self.cut(file, start, len)?;
        }
        let held = pipe.hold(file, start as u64, len)?;
        if left_out("emptying before copying") {
            pipe.pour(vault, start as u64, held)?;
            return self.cut(file, start, len).map(|()| 0);
        }
        if !left_out("emptying") {
            self.cut(file, start, len)?;
        }
        // From here on the pipe alone has the content.
        if self.emptied == Emptied::Ones {
            // Without memory for the ones the part reads as zeroes: just as unreachable.
            let _ = file::fill_with_ones(file, start as u64, len);
        }
        pipe.pour(vault, start as u64, held)?;
        file::fill_with_zeroes(vault, (start + held) as u64, len - held)?;
        Ok(len - held)
    }

    /// Takes the pages of a part out of the file: from `start` on, or `len` bytes. A huge page at its end goes as a whole.
    fn cut(&self, file: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), SysError> {
        match self.emptied {
            Emptied::Short => file::truncate(file, start as u64),
            Emptied::Ones if start + len == self.len => file::punch(file, start as u64, len.next_multiple_of(HELD)),
            Emptied::Ones => file::punch(file, start as u64, len),
        }
    }

    fn fill_up(&self, content: &mut Content) -> Result<(), SysError> {
        let (file, vault) = (self.file.get()?, self.vault.get()?);
        if content.pipe.check().is_err() {
            content.pipe = Pipe::new(content.pipe.room)?;
        }
        // A peer may have made it longer meanwhile.
        let filled = self
            .fill_part(&content.pipe, file, vault, 0, self.len)
            .and_then(|()| file::truncate_if_longer(file, self.len as u64).map_err(|e| (self.len, e)));
        filled.map_err(|(done, e)| {
            content.pipe.clear();
            // The part that failed is still in the vault. Stores that were made before that part meanwhile are kept.
            let dropped = self.drop_part(file, done, content.pipe.room.min(self.len - done));
            if dropped.and_then(|()| self.empty_from(content, done)).is_err() {
                let _ = self.discard();
            }
            e
        })
    }

    /// Empties a part whatever becomes of its content.
    fn drop_part(&self, file: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), SysError> {
        match self.emptied {
            Emptied::Short => file::truncate(file, start as u64),
            Emptied::Ones if len == 0 => Ok(()),
            Emptied::Ones => {
                file::punch(file, start as u64, len).and_then(|()| file::fill_with_ones(file, start as u64, len))
            }
        }
    }

    /// Copies the part from `start` to `end` from the vault into the window. A page has its content before the size covers
    /// it, so that no zeroes are ever read. An error says how far it came.
    fn fill_part(
        &self,
        pipe: &Pipe,
        file: BorrowedFd<'_>,
        vault: BorrowedFd<'_>,
        start: usize,
        end: usize,
    ) -> Result<(), (usize, SysError)> {
        let mut at = start;
        while at < end {
            let len = pipe.room.min(end - at);
            let held = pipe.hold(vault, at as u64, len).map_err(|e| (at, e))?;
            pipe.pour(file, at as u64, held).map_err(|e| (at, e))?;
            at += len;
        }
        Ok(())
    }
}
