//! What a peer that runs by itself tells the test: a file that both have, read and written by system calls here.

use crate::PAGE;
use crate::peer::Running;
use crate::support::{self, raw};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// A peer that runs without pause, and its log (log.h).
pub(crate) struct Logged {
    log: File,
    running: Running,
}

/// The words of the log's head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Head {
    Passes = 1,
    Made = 2,
    Refused = 3,
    Wrong = 4,
    At = 8,
}

impl Logged {
    /// Starts a program with a descriptor of a region of `len` bytes, and waits until it has mapped it. `None` without a C
    /// compiler.
    pub(crate) fn new(name: &str, window: OwnedFd, len: usize, args: &[&str]) -> Option<Self> {
        let log = File::from(raw::scratch());
        log.set_len((PAGE + len) as u64).expect("a memfd grows");
        let theirs = log.try_clone().expect("a descriptor").into();
        let text = len.to_string();
        let args: Vec<&str> = std::iter::once(text.as_str()).chain(args.iter().copied()).collect();
        let mut logged = Self { log, running: Running::new(name, window, theirs, &args)? };
        support::eventually("the peer has mapped the region", || {
            logged.head(Head::At) != 0 || logged.ended().is_some()
        });
        assert_eq!(logged.ended(), None, "{name} {args:?}");
        Some(logged)
    }

    pub(crate) fn head(&self, word: Head) -> u64 {
        self.words(word as usize, 1)[0]
    }

    /// `count` words that follow the head, from the word `from` on.
    pub(crate) fn page_words(&self, from: usize, count: usize) -> Vec<u64> {
        self.words(PAGE / 8 + from, count)
    }

    fn words(&self, from: usize, count: usize) -> Vec<u64> {
        let mut bytes = vec![0; count * 8];
        self.log.read_exact_at(&mut bytes, from as u64 * 8).expect("the log is that long");
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect()
    }

    /// Waits until a word has grown by `more`.
    pub(crate) fn wait(&mut self, word: Head, more: u64) {
        let enough = self.head(word) + more;
        support::eventually(&format!("{word:?} has come to {enough}"), || {
            self.lives();
            self.head(word) >= enough
        });
    }

    /// Panics if the peer has ended: a minute after its start it does in any case.
    pub(crate) fn lives(&mut self) {
        assert_eq!(self.ended(), None, "the peer has ended");
    }

    /// Panics if the peer has seen a violation.
    pub(crate) fn sound(&self, what: &str) {
        assert_eq!(self.verdict(), Ok(()), "{what}");
    }

    /// The violations that the peer has seen.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        match self.words(Head::Wrong as usize, 4)[..] {
            [0, ..] => Ok(()),
            [count, page, got, wanted] => {
                Err(format!("{count} violations; page {page}: {got:#x} instead of {wanted:#x}"))
            }
            _ => unreachable!("four words"),
        }
    }

    /// How the peer has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.running.0.try_wait().expect("a child of ours").map(|status| status.to_string())
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.running.0.id()).expect("a pid")
    }
}
