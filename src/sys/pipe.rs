//! Pipes that hold the pages of a file: splice(2).
//!
//! A pipe refers to the pages of the page cache themselves, and nothing is copied: what is stored to them afterwards is in
//! the pipe too. It keeps them when the file lets go of them.
#![expect(unsafe_code, reason = "splice(2), pipe(2) and read(2) have no safe form without more features of nix")]

use super::known::KnownFile;
use super::{SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Empty pipes with room for a number of bytes together. One has room for 1 MiB at most without privilege
/// (`pipe-max-size`, pipe(7)), and for less where the user has many (`pipe-user-pages-soft`).
#[derive(Debug)]
pub(crate) struct Pipes(Vec<Pipe>);

/// More pipes than this are not made for a room.
const MOST: usize = 64;

impl Pipes {
    pub(crate) fn new(want: usize) -> Result<Self, SysError> {
        let mut pipes = Vec::new();
        let mut room = 0;
        while room < want {
            if pipes.len() == MOST {
                return Err(SysError::new("fcntl(F_SETPIPE_SZ)", Errno::EPERM));
            }
            let pipe = Pipe::new(want - room)?;
            room += pipe.room;
            pipes.push(pipe);
        }
        Ok(Self(pipes))
    }

    /// Makes those anew that other code has closed.
    pub(crate) fn mend(&mut self) -> Result<(), SysError> {
        if self.0.iter().any(|pipe| pipe.check().is_err()) {
            *self = Self::new(self.0.iter().map(|pipe| pipe.room).sum())?;
        }
        Ok(())
    }

    /// Holds the pages of `file` from `offset` on, `len` bytes of them, at most the room. Both are multiples of the page
    /// size. Returns how many bytes: fewer only where the file ends.
    ///
    /// A page that was never written (a hole, or only allocated) is held as zeroes, and not as what is stored to it later
    /// (`shmem_file_splice_read`).
    pub(crate) fn hold(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        for pipe in &self.0 {
            let want = pipe.room.min(len - held);
            let got = pipe.hold(file, (offset + held) as u64, want)?;
            held += got;
            if got < want || held == len {
                break;
            }
        }
        Ok(held)
    }

    /// Copies the `held` bytes that they hold into `file`, from `offset` on.
    pub(crate) fn pour(&self, file: BorrowedFd<'_>, offset: usize, held: usize) -> Result<(), SysError> {
        let mut poured = 0;
        for pipe in &self.0 {
            let len = pipe.room.min(held - poured);
            pipe.pour(file, (offset + poured) as u64, len)?;
            poured += len;
        }
        Ok(())
    }

    /// Lets go of whatever they hold.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(Pipe::clear);
    }
}

#[derive(Debug)]
struct Pipe {
    read: KnownFile,
    write: KnownFile,
    /// How many bytes of whole pages it can hold.
    room: usize,
}

impl Pipe {
    /// A pipe with room for `want` bytes, or for as many as the user may have (`pipe-user-pages-soft`, pipe(7)).
    fn new(want: usize) -> Result<Self, SysError> {
        may_fail("pipe2")?;
        let mut ends = [-1; 2];
        // SAFETY: writes two descriptors into the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(SysError::last("pipe2"));
        }
        // SAFETY: descriptors that the kernel has just given to this call alone.
        let [read, write] = ends.map(|end| KnownFile::new(unsafe { OwnedFd::from_raw_fd(end) }));
        for size in [want, want.min(1 << 20)] {
            let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
            // SAFETY: changes a property of a pipe made here. A refusal leaves it as large as it is.
            if unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, size) } >= 0 {
                break;
            }
        }
        // SAFETY: asks for that property.
        let got = unsafe { libc::fcntl(ends[1], libc::F_GETPIPE_SZ) };
        // One slot a page. The size is a multiple of the page size.
        match usize::try_from(got) {
            Ok(room) if room >= page_size() => Ok(Self { read, write, room }),
            _ => Err(SysError::new("fcntl(F_GETPIPE_SZ)", Errno::last())),
        }
    }

    /// Fails if other code has closed it.
    fn check(&self) -> Result<(), SysError> {
        self.read.get().and_then(|_| self.write.get()).map(drop)
    }

    fn hold(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize, SysError> {
        let mut held = 0;
        while held < len {
            may_fail("splice(from a file)")?;
            let mut at = offset_of(offset + held as u64)?;
            let write = self.write.get()?;
            // SAFETY: the kernel reads and writes `at`, and moves references to pages.
            let n = unsafe {
                libc::splice(
                    file.as_raw_fd(),
                    &raw mut at,
                    write.as_raw_fd(),
                    std::ptr::null_mut(),
                    len - held,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            match usize::try_from(n) {
                Ok(0) => break,
                Ok(n) => held += n,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(SysError::last("splice(from a file)")),
            }
        }
        Ok(held)
    }

    fn pour(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<(), SysError> {
        let mut poured = 0;
        while poured < len {
            may_fail("splice(to a file)")?;
            let mut at = offset_of(offset + poured as u64)?;
            let read = self.read.get()?;
            // SAFETY: as in `hold`.
            let n = unsafe {
                libc::splice(
                    read.as_raw_fd(),
                    std::ptr::null_mut(),
                    file.as_raw_fd(),
                    &raw mut at,
                    len - poured,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            match usize::try_from(n) {
                Ok(0) => return Err(SysError::new("splice(to a file)", Errno::EPIPE)),
                Ok(n) => poured += n,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(SysError::last("splice(to a file)")),
            }
        }
        Ok(())
    }

    fn clear(&self) {
        let mut scrap = [0u8; 4096];
        while let Ok(read) = self.read.get() {
            // SAFETY: writes into the array, at most its length.
            let n = unsafe { libc::read(read.as_raw_fd(), scrap.as_mut_ptr().cast(), scrap.len()) };
            if n == 0 || n < 0 && Errno::last() != Errno::EINTR {
                return;
            }
        }
    }
}

fn offset_of(offset: u64) -> Result<libc::off64_t, SysError> {
    libc::off64_t::try_from(offset).map_err(|_| SysError::new("splice", Errno::EOVERFLOW))
}
