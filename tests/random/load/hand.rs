//! The ways to access a region, each as a load and a store of one word.

use super::ledger::is_forbidden;
use super::rig::Device;
use super::worker::{NotDone, Terms, Touch};
use crate::support::matrix::Case;
use crate::support::raw;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::{FaultFlags, NotResolved};
use revocable_mmio::{
    AccessError, Caller, CopyError, FaultQueue, Mapping, OnDisabled, Pin, PinError, Strategy, SubmitError, Submitted,
};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Accessor,
    /// By pointer; a signal is caught.
    Raw,
    SystemCall,
    /// By pointer, under a guard.
    Guard,
    /// By pointer, at the address of a pin.
    Pin,
    Bulk,
    /// On the caller's behalf, in turns as a caller that waits and as one that never does.
    Behalf,
    /// As a vCPU: it is told when to try again.
    Async,
    /// On a mapping whose accesses resolve their own faults.
    OwnFaults,
    /// Through a mapping made for each access.
    NewMapping,
}

impl Way {
    /// The ways that are possible in this process.
    pub(crate) fn all(case: &Case) -> Vec<Self> {
        let all = [
            Way::Accessor,
            Way::Raw,
            Way::Raw,
            Way::SystemCall,
            Way::Guard,
            Way::Pin,
            Way::Bulk,
            Way::Behalf,
            Way::Async,
            Way::OwnFaults,
            Way::NewMapping,
        ];
        all.into_iter().filter(|way| way.is_possible(case)).collect()
    }

    fn is_possible(self, case: &Case) -> bool {
        match self {
            Way::OwnFaults => case.strategy == Strategy::Zap,
            // Where no access can wait, a busy region refuses a load by pointer.
            Way::Raw | Way::SystemCall => case.can_wait(),
            _ => true,
        }
    }

    /// The bits of a cell that its stores change.
    pub(crate) fn store_mask(self) -> u64 {
        match self {
            // The byte at the cell's first address: the kernel may copy byte by byte.
            Way::SystemCall => u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0, 0]),
            _ => u64::MAX,
        }
    }

    /// True if a disabled region can refuse it.
    fn may_be_refused(self, case: &Case) -> bool {
        match self {
            Way::Guard | Way::Pin | Way::Async => true,
            // No userfaultfd makes the kernel's faults wait there.
            Way::SystemCall if !case.kernel_waits() => true,
            // Policy Block is for user mode.
            Way::SystemCall => case.policy != OnDisabled::AllOnes,
            _ => case.policy == OnDisabled::Sigbus,
        }
    }

    /// True if a busy region can refuse it, though enabled: system calls on memory for which the kernel cannot wait.
    fn refused_by_busy(self, case: &Case) -> bool {
        self == Way::SystemCall && !case.kernel_waits()
    }

    /// True if a disabled region drops its stores, and returns all-ones to its loads.
    fn is_lost(self, case: &Case) -> bool {
        case.policy == OnDisabled::AllOnes && !matches!(self, Way::Guard | Way::Pin)
    }
}

impl From<raw::Hit> for NotDone {
    fn from(hit: raw::Hit) -> Self {
        if hit == raw::Hit::bus(hit.addr) { NotDone::Refused } else { NotDone::Wrong(format!("{hit:?}")) }
    }
}

impl From<CopyError> for NotDone {
    fn from(e: CopyError) -> Self {
        e.error.into()
    }
}

/// A way with the objects that it needs.
pub(crate) struct Hand<'a> {
    way: Way,
    device: &'a Device,
    mapping: &'a Mapping,
    /// The other side of a system call.
    file: File,
    queue: FaultQueue,
}

impl<'a> Hand<'a> {
    pub(crate) fn new(way: Way, device: &'a Device, number: usize) -> Self {
        let which = match way {
            Way::OwnFaults => 4,
            _ => [0, 1, 0, 2, 1, 3][number / 4 % 6],
        };
        let queue = FaultQueue::new(4).expect("an eventfd");
        Self { way, device, mapping: &device.mappings[which], file: File::from(raw::scratch()), queue }
    }

    /// The offset of a byte in the mapping, and its address.
    fn place(&self, offset: usize) -> (usize, usize) {
        let at = offset - self.mapping.offset();
        (at, self.mapping.as_ptr().expose_provenance() + at)
    }

    /// Under a guard no access is refused.
    fn guarded<R>(&self, access: impl FnOnce(&Mapping) -> Result<R, raw::Hit>) -> Result<R, NotDone> {
        self.mapping.with_access(|access_| access(access_))?.map_err(|hit| NotDone::Wrong(format!("guarded: {hit:?}")))
    }

    fn pinned<R>(&self, offset: usize, access: impl FnOnce(usize) -> Result<R, raw::Hit>) -> Result<R, NotDone> {
        let caller = Caller::new(FaultFlags::WAIT).on_disabled(self.mapping.on_disabled());
        let pin: Pin = match self.device.region.pin(offset..offset + 8, caller) {
            Ok(pin) => pin,
            Err(PinError::Disabled) => return Err(NotDone::Refused),
            Err(e) => return Err(NotDone::Wrong(e.to_string())),
        };
        let addr = pin.as_ptr().expose_provenance() + (offset - pin.range().start);
        access(addr).map_err(|hit| NotDone::Wrong(format!("pinned: {hit:?}")))
    }

    /// Copies the word, and the pages after it up to the third.
    fn bulk_load(&self, at: usize) -> Result<u64, NotDone> {
        let page = 4096;
        let end = (at / page * page + 3 * page).min(self.mapping.len());
        let mut bytes = vec![0; end - at];
        self.mapping.read_slice(at, &mut bytes)?;
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let stamps = (at.next_multiple_of(page)..end).step_by(page).map(|stamp| word(stamp - at));
        match stamps.into_iter().find(|stamp| is_forbidden(*stamp)) {
            Some(stamp) => Err(NotDone::Wrong(format!("a copy has a forbidden stamp, {stamp:#x}"))),
            None => Ok(word(0)),
        }
    }

    /// Waits for the page as a vCPU does, and not in the fault itself.
    fn told(&self, offset: usize) -> Result<(), NotDone> {
        let caller = Caller::new(FaultFlags::WAIT).on_disabled(self.mapping.on_disabled());
        let token = match self.device.region.fault_async(offset, caller, &self.queue) {
            Ok(Submitted::Ready) => return Ok(()),
            Ok(Submitted::Queued(token)) => token,
            Ok(other) => return Err(NotDone::Wrong(format!("{other:?}"))),
            Err(SubmitError::Full { limit }) => return Err(NotDone::Wrong(format!("full: {limit}"))),
            Err(e) => return Err(NotDone::Wrong(e.to_string())),
        };
        let mut fds = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        let Some(done) = self.queue.next() else { return Err(NotDone::Wrong("readable, with no completion".into())) };
        if done.id != token.id() {
            return Err(NotDone::Wrong(format!("{done:?} for {token:?}")));
        }
        match done.result {
            Ok(()) => Ok(()),
            // The access gets all-ones, whatever the memory holds.
            Err(NotResolved::Sigbus) if self.mapping.on_disabled() == OnDisabled::AllOnes => Ok(()),
            Err(NotResolved::Sigbus) => Err(NotDone::Refused),
            Err(e) => Err(NotDone::Wrong(e.to_string())),
        }
    }

    fn anew<R>(&self, access: impl FnOnce(&Mapping) -> Result<R, AccessError>) -> Result<R, NotDone> {
        let mapping = self.device.region.map(self.device.case.options());
        let mapping = mapping.map_err(|e| NotDone::Wrong(e.to_string()))?;
        Ok(access(&mapping)?)
    }
}

impl Touch for Hand<'_> {
    fn name(&self) -> String {
        format!("of its region, {:?}", self.way)
    }

    fn terms(&self) -> Terms {
        let (way, case) = (self.way, &self.device.case);
        Terms {
            is_refused: way.may_be_refused(case),
            is_refused_by_busy: way.refused_by_busy(case),
            is_peer: false,
            is_nowait: way == Way::Behalf,
            is_lost: way.is_lost(case),
        }
    }

    fn store_mask(&self) -> u64 {
        self.way.store_mask()
    }

    fn reaches(&self, offset: usize) -> bool {
        offset >= self.mapping.offset()
    }

    fn is_writable(&self) -> bool {
        self.mapping.is_writable()
    }

    fn load(&self, offset: usize, turn: u64) -> Result<u64, NotDone> {
        let (at, addr) = self.place(offset);
        match self.way {
            Way::Accessor | Way::OwnFaults => Ok(self.mapping.read(at)?),
            Way::Raw => Ok(raw::load64(addr)?),
            Way::SystemCall => {
                raw::pwrite_from(&self.file, addr, 8)?;
                let mut bytes = [0; 8];
                self.file.read_exact_at(&mut bytes, 0).map_err(|e| NotDone::Wrong(e.to_string()))?;
                Ok(u64::from_ne_bytes(bytes))
            }
            Way::Guard => self.guarded(|_| raw::load64(addr)),
            Way::Pin => self.pinned(offset, raw::load64),
            Way::Bulk => self.bulk_load(at),
            Way::Behalf => Ok(self.mapping.read_with(at, flags(turn))?),
            Way::Async => self.told(offset).and_then(|()| Ok(self.mapping.read(at)?)),
            Way::NewMapping => self.anew(|mapping| mapping.read(offset)),
        }
    }

    fn store(&self, offset: usize, value: u64, turn: u64) -> Result<(), NotDone> {
        let (at, addr) = self.place(offset);
        match self.way {
            Way::Accessor | Way::OwnFaults => Ok(self.mapping.write(at, value)?),
            Way::Raw => Ok(raw::store64(addr, value)?),
            Way::SystemCall => {
                let byte = &value.to_ne_bytes()[..1];
                self.file.write_all_at(byte, 0).map_err(|e| NotDone::Wrong(e.to_string()))?;
                raw::pread_into(&self.file, addr, 1)?;
                Ok(())
            }
            Way::Guard => self.guarded(|_| raw::store64(addr, value)),
            Way::Pin => self.pinned(offset, |addr| raw::store64(addr, value)),
            Way::Bulk => Ok(self.mapping.write_slice(at, &value.to_ne_bytes())?),
            Way::Behalf => Ok(self.mapping.write_with(at, value, flags(turn) | FaultFlags::WRITE)?),
            Way::Async => self.told(offset).and_then(|()| Ok(self.mapping.write(at, value)?)),
            Way::NewMapping => self.anew(|mapping| mapping.write(offset, value)),
        }
    }
}

fn flags(turn: u64) -> FaultFlags {
    if turn % 2 == 0 { FaultFlags::DEFAULT } else { FaultFlags::NOWAIT }
}
