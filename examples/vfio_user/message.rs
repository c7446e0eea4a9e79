//! Messages of the vfio-user protocol: a header, and fields of fixed sizes after it, in the machine's byte order.

use nix::errno::Errno;
use std::os::fd::OwnedFd;

/// The header's size, in bytes.
pub(crate) const HEADER: usize = 16;
/// The most bytes that one REGION_READ or REGION_WRITE transfers. The client is told so.
pub(crate) const MOST_DATA: usize = 64 << 10;
/// The most bytes that follow a header: the data of a write, and what stands before it.
pub(crate) const MOST_PAYLOAD: usize = MOST_DATA + 64;

/// Commands.
pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const RESET: u16 = 13;

/// Header flags: the type of the message, 0 for a command, 1 for a reply.
const TYPE: u32 = 0xf;
const REPLY: u32 = 1;
/// Header flags: the sender of the command wants no reply.
const NO_REPLY: u32 = 1 << 4;
/// Header flags: the command failed, and the header has its errno.
const ERROR: u32 = 1 << 5;

/// The header of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) command: u16,
    /// The size of the whole message, in bytes.
    size: u32,
    flags: u32,
}

/// A command as it came in.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What follows the header of a reply that reports no error.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fd: Option<OwnedFd>,
}

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, size @ .., _, _, _, _, _, _, _, _] = bytes;
        let [.., e, f, g, h, _, _, _, _] = bytes;
        Self {
            id: u16::from_ne_bytes([a, b]),
            command: u16::from_ne_bytes([c, d]),
            size: u32::from_ne_bytes(size),
            flags: u32::from_ne_bytes([e, f, g, h]),
        }
    }

    /// The number of bytes that follow. `None` if there cannot be so many, or the message is not a command: then nothing
    /// that the client sends after it can be trusted to be a header.
    pub(crate) fn payload(&self) -> Option<usize> {
        let len = usize::try_from(self.size).ok()?.checked_sub(HEADER)?;
        (len <= MOST_PAYLOAD && self.flags & TYPE == 0).then_some(len)
    }

    pub(crate) fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// The bytes of the reply.
    pub(crate) fn reply(&self, outcome: Result<&Reply, Errno>) -> Vec<u8> {
        let payload = outcome.map_or(&[][..], |reply| &reply.payload);
        let (flags, errno) = match outcome {
            Ok(_) => (REPLY, 0),
            Err(errno) => (REPLY | ERROR, errno as u32),
        };
        let size = u32::try_from(HEADER + payload.len()).expect("replies are short");
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend(self.id.to_ne_bytes());
        bytes.extend(self.command.to_ne_bytes());
        bytes.extend([size, flags, errno].map(u32::to_ne_bytes).as_flattened());
        bytes.extend(payload);
        bytes
    }
}

/// Takes fields off the front of a payload. A field that is not there is EINVAL.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_ne_bytes)
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// EINVAL if anything is left.
    pub(crate) fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }
}
