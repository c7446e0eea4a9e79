//! One client's socket: whole messages in, with their descriptors, and replies out.
#![expect(unsafe_code, reason = "descriptors that the kernel has made are taken over")]

use super::message::{HEADER, Header, Message, Reply};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a client may take for a message that it has begun, or to read a reply.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most descriptors that one message can have (the kernel's `SCM_MAX_FD`): with room for them none is cut off.
const MOST_FDS: usize = 253;

pub(crate) struct Connection(UnixStream);

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// The next message. `None` if the client has hung up between two.
    ///
    /// # Errors
    /// The connection must be closed: it broke, or the client sent no message, or not all of it in time.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Message>> {
        let (mut header, mut fds) = ([0; HEADER], Vec::new());
        self.0.set_read_timeout(None)?;
        let begun = self.some(&mut header, &mut fds)?;
        if begun == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + PATIENCE;
        self.all(&mut header[begun..], &mut fds, deadline)?;
        let header = Header::parse(header);
        let no_message = || io::Error::new(ErrorKind::InvalidData, format!("no command: {header:?}"));
        let mut payload = vec![0; header.payload().ok_or_else(no_message)?];
        self.all(&mut payload, &mut fds, deadline)?;
        Ok(Some(Message { header, payload, fds }))
    }

    pub(crate) fn reply(&mut self, to: &Header, outcome: Result<Reply, Errno>) -> io::Result<()> {
        let bytes = to.reply(outcome.as_ref().map_err(|errno| *errno));
        let fd = outcome.ok().and_then(|reply| reply.fd);
        let fds = [fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fd.is_some() { &rights[..] } else { &[] };
        let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
        self.0.write_all(&bytes[sent..])
    }

    fn all(&mut self, into: &mut [u8], fds: &mut Vec<OwnedFd>, deadline: Instant) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            self.0.set_read_timeout(Some(left.ok_or(ErrorKind::TimedOut)?))?;
            match self.some(&mut into[done..], fds)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                more => done += more,
            }
        }
        Ok(())
    }

    /// Some bytes, 0 at the end, and the descriptors that came with them. More than one message may have are an error.
    fn some(&mut self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut control = nix::cmsg_space!([RawFd; MOST_FDS]);
        let mut into = [IoSliceMut::new(into)];
        let (fd, flags) = (self.0.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
        let received = loop {
            match recvmsg::<()>(fd, &mut into, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(came) = message {
                // SAFETY: the kernel has just made these descriptors for this process, and nothing else knows them.
                fds.extend(came.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if fds.len() > MOST_FDS {
            return Err(io::Error::new(ErrorKind::InvalidData, "more descriptors than a message may have"));
        }
        Ok(received.bytes)
    }
}
