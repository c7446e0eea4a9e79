//! The system calls of a withdrawal and nothing else: a window, a mapped vault and a pipe, without checks, locks or an
//! owner's view.

use super::raw::{Map, PAGE, memfd, read, splice, write};
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

pub(crate) struct Bare {
    pub(crate) window: File,
    pub(crate) vault: File,
    map: Map,
    pipe: (OwnedFd, OwnedFd),
    len: usize,
    /// How much the pipe holds at once, in bytes.
    step: usize,
    /// Ones in place of nothing; empty otherwise.
    ones: Vec<u8>,
}

impl Bare {
    /// All pages of both files exist, and those of the window have been written: others are spliced as zeroes.
    pub(crate) fn new(len: usize, all_ones: bool) -> Self {
        let [window, vault] = [len, len].map(|len| File::from(memfd(len, 0).expect("memory")));
        window.write_all_at(&vec![0; len], 0).expect("its own pages");
        let map = Map::new(vault.as_fd(), len, PAGE);
        map.bytes().touch(PAGE);
        let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        let step = len.min(if all_ones { 64 << 10 } else { 1 << 20 });
        let size = FcntlArg::F_SETPIPE_SZ(step.try_into().expect("at most 1 MiB"));
        fcntl(pipe.1.as_fd(), size).expect("what anyone may have");
        Self { window, vault, map, pipe, len, step, ones: vec![0xff; if all_ones { step } else { 0 }] }
    }

    /// From the end backwards, because a file is shortened at its end.
    pub(crate) fn take(&self) {
        for start in (0..self.len).step_by(self.step).rev() {
            self.hold(&self.window, start);
            if self.ones.is_empty() {
                self.window.set_len(start as u64).expect("unsealed");
            } else {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let [at, len] = [start, self.step].map(|n| n.try_into().expect("inside of a file"));
                fallocate(self.window.as_fd(), flags, at, len).expect("a hole");
                self.window.write_all_at(&self.ones, start as u64).expect("memory");
            }
            self.pour(start);
        }
    }

    pub(crate) fn give_back(&self) {
        let mut done = 0;
        while done < self.len {
            done += write(self.window.as_fd(), self.map.bytes(), done);
        }
    }

    fn hold(&self, file: &File, start: usize) {
        let mut held = 0;
        while held < self.step {
            held += splice(file.as_fd(), start + held, self.pipe.1.as_fd(), self.step - held);
        }
    }

    fn pour(&self, start: usize) {
        let mut poured = 0;
        while poured < self.step {
            poured += read(self.pipe.0.as_fd(), self.map.bytes(), start + poured..start + self.step);
        }
    }
}
