//! The messages of a userfaultfd, of 32 bytes each (`struct uffd_msg`, userfaultfd(2)).
//!
//! Pure: bytes in, faults out. Every message except a page fault is ignored. The crate asks for no events; if a descriptor
//! from elsewhere sends some, they are read, which their originators wait for, and nothing more.

use crate::sys::Addr;
use linux_raw_sys::general as raw;
use std::mem::offset_of;

/// The size of a message, in bytes. The kernel writes whole ones only.
pub(crate) const SIZE: usize = size_of::<raw::uffd_msg>();

const EVENT: usize = offset_of!(raw::uffd_msg, event);
const FLAGS: usize = offset_of!(raw::uffd_msg, arg.pagefault.flags);
const ADDRESS: usize = offset_of!(raw::uffd_msg, arg.pagefault.address);
const THREAD: usize = offset_of!(raw::uffd_msg, arg.pagefault.feat);

/// A page fault that waits to be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultMessage {
    pub(crate) addr: Addr,
    /// The thread that faulted, if the kernel says so (`UFFD_FEATURE_THREAD_ID`); 0 otherwise.
    pub(crate) tid: u32,
    pub(crate) write: bool,
}

/// Messages that were read, and room for more.
pub(crate) struct Messages {
    bytes: [u8; Self::ROOM * SIZE],
    /// How many bytes the last read has written.
    read: usize,
}

impl Messages {
    /// How many there is room for.
    const ROOM: usize = 16;

    pub(crate) fn none() -> Self {
        Self { bytes: [0; Self::ROOM * SIZE], read: 0 }
    }

    /// Replaces them by what `read` writes, at most `limit` (and at least one); returns how many that are.
    pub(super) fn replace<E>(
        &mut self,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.read = 0;
        self.read = read(&mut self.bytes[..limit.clamp(1, Self::ROOM) * SIZE])?;
        Ok(self.read / SIZE)
    }

    pub(crate) fn faults(&self) -> impl Iterator<Item = FaultMessage> {
        faults(&self.bytes[..self.read])
    }
}

/// The page faults among the messages in `bytes`; a message that is cut off is ignored.
pub(crate) fn faults(bytes: &[u8]) -> impl Iterator<Item = FaultMessage> {
    bytes.chunks_exact(SIZE).filter_map(|message| decode(message.try_into().ok()?))
}

fn decode(message: &[u8; SIZE]) -> Option<FaultMessage> {
    if u32::from(message[EVENT]) != raw::UFFD_EVENT_PAGEFAULT {
        return None;
    }
    let flags = u64::from_ne_bytes(field(message, FLAGS));
    Some(FaultMessage {
        addr: Addr(usize::try_from(u64::from_ne_bytes(field(message, ADDRESS))).ok()?),
        tid: u32::from_ne_bytes(field(message, THREAD)),
        write: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
    })
}

/// The bytes of a field.
fn field<const N: usize>(message: &[u8; SIZE], at: usize) -> [u8; N] {
    std::array::from_fn(|i| message[at + i])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as the kernel writes it.
    pub(crate) fn fault(flags: u64, address: u64, tid: u32) -> [u8; SIZE] {
        let mut message = [0; SIZE];
        message[EVENT] = 0x12;
        message[FLAGS..FLAGS + 8].copy_from_slice(&flags.to_ne_bytes());
        message[ADDRESS..ADDRESS + 8].copy_from_slice(&address.to_ne_bytes());
        message[THREAD..THREAD + 4].copy_from_slice(&tid.to_ne_bytes());
        message
    }

    /// Messages of all known kinds and of no kind: known events with any content, and any bytes at all.
    pub(crate) fn any_message() -> impl Strategy<Value = [u8; SIZE]> {
        (prop_oneof![Just(Some(0x12u8)), (0x10u8..0x18).prop_map(Some), Just(None)], any::<[u8; SIZE]>()).prop_map(
            |(event, mut bytes)| {
                bytes[EVENT] = event.unwrap_or(bytes[EVENT]);
                bytes
            },
        )
    }

    #[test]
    fn the_layout_is_the_kernels() {
        // include/uapi/linux/userfaultfd.h
        assert_eq!((SIZE, EVENT, FLAGS, ADDRESS, THREAD), (32, 0, 8, 16, 24));
    }

    #[test]
    fn a_read_takes_the_place_of_the_one_before_it() {
        let mut messages = Messages::none();
        let whole = |room: &mut [u8]| {
            room.chunks_exact_mut(SIZE).for_each(|message| message.copy_from_slice(&fault(0, 4096, 7)));
            Ok::<_, ()>(room.len())
        };
        for (limit, read) in [(0, 1), (1, 1), (3, 3), (usize::MAX, Messages::ROOM), (2, 2)] {
            assert_eq!(messages.replace(limit, whole), Ok(read));
            assert_eq!(messages.faults().count(), read);
        }
        assert_eq!(messages.replace(1, |_| Err(())), Err(()));
        assert_eq!(messages.faults().count(), 0, "none is answered twice");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 16 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_fault_is_understood_whatever_flags_it_has(flags: u64, address: u64, tid: u32) {
            let understood: Vec<_> = faults(&fault(flags, address, tid)).collect();
            let addr = usize::try_from(address).map(Addr);
            let expected = addr.map(|addr| FaultMessage { addr, tid, write: flags & 1 == 1 });
            prop_assert_eq!(understood, expected.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn only_whole_messages_about_faults_are_faults(
            messages in prop::collection::vec(any_message(), 0..20), cut in 0usize..SIZE,
        ) {
            let mut bytes = messages.concat();
            bytes.truncate(bytes.len().saturating_sub(cut));
            let whole = &messages[..bytes.len() / SIZE];
            let about_faults = whole.iter().filter(|message| message[0] == 0x12).count();
            prop_assert_eq!(faults(&bytes).count(), about_faults);
        }
    }
}
