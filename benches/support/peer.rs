//! Another process that maps a file: the bench's own binary, run again.

use super::raw::{Bytes, Map, PAGE};
use nix::libc::{PROT_READ, PROT_WRITE};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

const ARGUMENT: &str = "peer-of-a-bench";

/// Ends with the process that started it.
pub(crate) struct Peer {
    child: Child,
    /// `None` once it has been told to end.
    line: Option<UnixStream>,
}

impl Peer {
    /// A process that maps `len` bytes of `file`, for stores too if it is `writable`.
    pub(crate) fn start(file: &impl AsFd, len: usize, writable: bool) -> Self {
        let (line, its) = UnixStream::pair().expect("a socket pair");
        let file = file.as_fd().try_clone_to_owned().expect("a descriptor");
        let program = std::env::current_exe().expect("the bench's binary");
        let mut command = Command::new(program);
        let rights = if writable { PROT_READ | PROT_WRITE } else { PROT_READ };
        command
            .args([ARGUMENT, &len.to_string(), &rights.to_string()])
            .stdin(file)
            .stdout(Stdio::from(OwnedFd::from(its)));
        Self { child: command.spawn().expect("a process"), line: Some(line) }
    }

    /// Has each peer load from every page, and returns the first bytes of their last pages.
    pub(crate) fn touch(peers: &[Peer]) -> Vec<u8> {
        let line = |peer: &Peer| peer.line.as_ref().and_then(|line| line.try_clone().ok()).expect("not yet ended");
        peers.iter().for_each(|peer| line(peer).write_all(&[0]).expect("a peer"));
        let mut last = vec![0; peers.len()];
        for (peer, last) in peers.iter().zip(last.chunks_mut(1)) {
            line(peer).read_exact(last).expect("a peer that lives");
        }
        last
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.line = None;
        let _ = self.child.wait();
    }
}

/// True if this process was started as a peer, and has been one until its end.
pub(crate) fn was_peer() -> bool {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(ARGUMENT) {
        return false;
    }
    let len = args.next().and_then(|len| len.parse().ok()).expect("a length");
    let rights = args.next().and_then(|rights| rights.parse().ok()).expect("access rights");
    let map = Map::with_rights(io::stdin().as_fd(), len, PAGE, rights);
    let line = UnixStream::from(io::stdout().as_fd().try_clone_to_owned().expect("a descriptor"));
    let mut told = [0];
    while (&line).read_exact(&mut told).is_ok() {
        let last = load_from_all(map.bytes());
        if (&line).write_all(&[last]).is_err() {
            break;
        }
    }
    true
}

/// Loads from every page; returns the first byte of the last one.
pub(crate) fn load_from_all(bytes: Bytes) -> u8 {
    (0..bytes.len()).step_by(PAGE).fold(0, |_, offset| bytes.load(offset))
}
