//! Peers: other processes that map the region's file by themselves. They know nothing of this crate.
//!
//! A peer is this program, run again as `revoke peer`. It has the file as its standard input and a socket as its
//! standard output. The socket brings one request after the other, each for one access, and takes the outcome.

mod plain;

use crate::Verdict;
use crate::device;
use crate::output::Failed;
use nix::errno::Errno;
use plain::Mapped;
use revocable_mmio::{Region, ShareAccess};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How much of the file to map.
    #[arg(value_name = "BYTES", value_parser = device::size)]
    len: usize,
}

/// An access that a peer makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By pointer.
    Load,
    /// pwrite(2) out of the mapping.
    LoadByKernel,
    /// By pointer.
    Store(u64),
}

/// Why an access of a peer has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// SIGBUS, which its handler caught.
    Sigbus,
    Errno(Errno),
    /// The peer itself is gone.
    Ended(String),
}

/// A running peer. It ends with this value, or with this process.
pub(crate) struct Peer {
    child: Child,
    /// `None` once it was told to end.
    line: Option<UnixStream>,
    at: u64,
}

impl Peer {
    pub(crate) fn start(region: &Region) -> Result<Self, Failed> {
        let file = region.share(ShareAccess::ReadWrite)?;
        let (line, its) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer").arg(region.len().to_string()).stdin(file).stdout(Stdio::from(OwnedFd::from(its)));
        // A group of its own: Ctrl-C is for this process.
        let child = command.process_group(0).spawn()?;
        drop(command);
        let mut at = [0; 8];
        (&line).read_exact(&mut at).map_err(|e| format!("a peer did not start: {e}"))?;
        Ok(Self { child, line: Some(line), at: u64::from_ne_bytes(at) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address of its mapping, in its own address space.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Has it make an access, whose outcome this returns. The value of a store is the one that was stored.
    pub(crate) fn access(&self, offset: usize, access: Access) -> Result<u64, NoValue> {
        let ended = |e: io::Error| NoValue::Ended(format!("peer {}: {e}", self.pid()));
        let mut line = self.line.as_ref().ok_or_else(|| ended(io::ErrorKind::NotConnected.into()))?;
        line.write_all(&request(offset as u64, access)).map_err(ended)?;
        let mut reply = [0; 12];
        line.read_exact(&mut reply).map_err(ended)?;
        let value = u64::from_ne_bytes(reply[4..].try_into().unwrap_or_default());
        match i32::from_ne_bytes(reply[..4].try_into().unwrap_or_default()) {
            0 => Ok(value),
            SIGBUS => Err(NoValue::Sigbus),
            errno => Err(NoValue::Errno(Errno::from_raw(errno))),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.line = None;
        let _ = self.child.wait();
    }
}

/// In place of an errno, in a reply.
const SIGBUS: i32 = -1;

/// The kind of access, its offset, and the value of a store.
fn request(offset: u64, access: Access) -> [u8; 17] {
    let (kind, value) = match access {
        Access::Load => (0, 0),
        Access::LoadByKernel => (1, 0),
        Access::Store(value) => (2, value),
    };
    let mut request = [kind; 17];
    request[1..9].copy_from_slice(&offset.to_ne_bytes());
    request[9..].copy_from_slice(&value.to_ne_bytes());
    request
}

/// `revoke peer`: maps the standard input and makes accesses until the standard output has no more requests.
pub(crate) fn run(args: &Args) -> Result<Verdict, Failed> {
    let mapped = Mapped::new(io::stdin().as_fd(), args.len)?;
    let mut line = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    line.write_all(&(mapped.addr() as u64).to_ne_bytes())?;
    let mut request = [0; 17];
    while line.read_exact(&mut request).is_ok() {
        let number = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap_or_default());
        let offset = usize::try_from(number(1))?;
        let done = match request[0] {
            0 => mapped.load(offset),
            1 => mapped.load_by_kernel(offset),
            _ => mapped.store(offset, number(9)).map(|()| number(9)),
        };
        let (code, value) = match done {
            Ok(value) => (0, value),
            Err(NoValue::Sigbus) => (SIGBUS, 0),
            Err(NoValue::Errno(errno)) => (errno as i32, 0),
            Err(NoValue::Ended(e)) => return Err(e.into()),
        };
        let mut reply = [0; 12];
        reply[..4].copy_from_slice(&code.to_ne_bytes());
        reply[4..].copy_from_slice(&value.to_ne_bytes());
        if line.write_all(&reply).is_err() {
            break;
        }
    }
    Ok(Verdict::Good)
}
