//! A client of the server: it sends what it is told to, and maps BAR 0.
#![expect(unsafe_code, reason = "descriptors that the kernel has made are taken over")]

use super::server;
use crate::support::raw;
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub(super) struct Client {
    stream: Option<UnixStream>,
    server: Option<JoinHandle<()>>,
}

/// A reply: its error, its payload and its descriptor.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) errno: u32,
    pub(super) payload: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
}

/// The bytes of a message: header and payload.
pub(super) fn message(command: u16, payload: &[u8]) -> Vec<u8> {
    raw_message(command, 16 + u32::try_from(payload.len()).expect("short"), 0, payload)
}

/// The bytes of a message whose header says anything.
pub(super) fn raw_message(command: u16, size: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [7u16, command].map(u16::to_ne_bytes).as_flattened().to_vec();
    bytes.extend([size, flags, 0].map(u32::to_ne_bytes).as_flattened());
    bytes.extend(payload);
    bytes
}

/// The payload of VERSION, with this text after it.
pub(super) fn version(text: &[u8]) -> Vec<u8> {
    [&[0; 4], text, &[0]].concat()
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Client {
    /// A client of a server of its own, which has agreed on nothing yet.
    pub(super) fn stranger(every: Option<Duration>) -> Self {
        let (stream, theirs) = UnixStream::pair().expect("sockets");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let server = thread::spawn(move || server::serve(theirs, every, &|_| ()).expect("the server's own work"));
        Self { stream: Some(stream), server: Some(server) }
    }

    pub(super) fn new(every: Option<Duration>) -> Self {
        let mut client = Self::stranger(every);
        client.good(1, &version(b"{}"));
        client
    }

    pub(super) fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let mut at = 0;
        while at < bytes.len() {
            let rights = if at == 0 { rights } else { &[] };
            let piece = [IoSlice::new(&bytes[at..])];
            // The server may have hung up after the first bytes.
            match sendmsg::<()>(self.stream().as_raw_fd(), &piece, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => at += sent,
                Err(_) => return,
            }
        }
    }

    /// The next reply, or `None` if the server has hung up.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        let mut header = [0; 16];
        let mut control = nix::cmsg_space!([RawFd; 4]);
        let mut into = [IoSliceMut::new(&mut header)];
        let fd = self.stream().as_raw_fd();
        let received = recvmsg::<()>(fd, &mut into, Some(&mut control), MsgFlags::MSG_WAITALL);
        // A server that hangs up on what it has not read resets the connection.
        let received = received.ok().filter(|received| received.bytes > 0)?;
        let fd = received.cmsgs().expect("room").find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        // SAFETY: the kernel has just made it for this process, and nothing else knows it.
        let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (size, flags, errno) = (word(4), word(8), word(12));
        assert_eq!(flags & 0xf, 1, "a reply");
        assert_eq!(flags & 0x20 != 0, errno != 0, "an error has an errno");
        let mut payload = vec![0; size as usize - 16];
        self.stream().read_exact(&mut payload).expect("all of the reply");
        Some(Answer { errno, payload, fd })
    }

    pub(super) fn ask(&mut self, command: u16, payload: &[u8]) -> Option<Answer> {
        self.send(&message(command, payload), &[]);
        self.answer()
    }

    pub(super) fn good(&mut self, command: u16, payload: &[u8]) -> Answer {
        let answer = self.ask(command, payload).expect("the server is there");
        assert_eq!(answer.errno, 0, "command {command}");
        answer
    }

    pub(super) fn write(&mut self, region: u32, at: u64, bytes: &[u8]) -> u32 {
        let count = u32::try_from(bytes.len()).expect("short");
        let payload = [&at.to_ne_bytes()[..], &words(&[region, count]), bytes].concat();
        self.ask(10, &payload).expect("the server is there").errno
    }

    pub(super) fn read(&mut self, region: u32, at: u64, count: u32) -> Result<Vec<u8>, u32> {
        let answer =
            self.ask(9, &[&at.to_ne_bytes()[..], &words(&[region, count])].concat()).expect("the server is there");
        if answer.errno == 0 { Ok(answer.payload[16..].to_vec()) } else { Err(answer.errno) }
    }

    pub(super) fn region_info(&mut self, room: u32, index: u32) -> Answer {
        self.good(5, &words(&[room, 0, index, 0, 0, 0, 0, 0]))
    }

    /// Writes a register of configuration space.
    pub(super) fn config(&mut self, at: u64, bytes: [u8; 2]) {
        assert_eq!(self.write(7, at, &bytes), 0);
    }

    pub(super) fn bar(&mut self) -> Bar {
        let fd = self.region_info(64, 0).fd.expect("the descriptor of BAR 0");
        Bar(MmapOptions::new().map_raw(&fd).expect("a mapping"))
    }

    /// Hangs up. Returns when the server has done with this client; panics if the server did.
    pub(super) fn hang_up(mut self) {
        self.stream = None;
        self.server.take().expect("once").join().expect("the server does not panic");
    }

    fn stream(&mut self) -> &mut UnixStream {
        self.stream.as_mut().expect("connected")
    }
}

/// BAR 0, mapped by the client.
pub(super) struct Bar(MmapRaw);

impl Bar {
    pub(super) fn load(&self, at: usize) -> u64 {
        raw::load(self.0.as_ptr().wrapping_add(at), 8).expect("all-ones is no signal")
    }

    pub(super) fn store(&self, at: usize, value: u64) {
        raw::store(self.0.as_mut_ptr().wrapping_add(at), 8, value).expect("all-ones is no signal");
    }
}
