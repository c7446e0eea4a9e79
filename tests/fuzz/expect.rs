//! The model's answers to accesses of mappings, to copies, system calls and faults.

use super::model::{Allowed, Answer, Expected, MappingModel, Meets, Model, RegionModel, State, is, legal};
use super::op::{Call, Faulter, Memory, Modify, Op, Rights, Via, Waiter};
use revocable_mmio::fault::{FaultFlags, LockAfter, Outcome};
use revocable_mmio::{AccessError, CopyError, FaultError, OnDisabled, Strategy};

const EFAULT: i32 = 14;

impl MappingModel {
    /// Bounds and alignment of one access.
    fn check(&self, offset: usize, size: usize) -> Result<(), AccessError> {
        if offset.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(AccessError::OutOfBounds { offset, size, len: self.len });
        }
        if offset % size != 0 { Err(AccessError::Misaligned { offset, align: size }) } else { Ok(()) }
    }

    /// Do the rights that are left to its pages allow it?
    fn permits(&self, region: &RegionModel, offset: usize, len: usize, store: bool) -> bool {
        let needed = if store { Rights::All } else { Rights::Loads };
        let pages = offset / region.page..=(offset + len.max(1) - 1) / region.page;
        self.rights.get(pages).is_none_or(|rights| rights.iter().all(|rights| *rights >= needed))
    }

    /// Where accessors use the owner's view, the mapping's rights are none of theirs.
    fn permits_accessor(&self, region: &RegionModel, offset: usize, len: usize, store: bool) -> bool {
        cfg!(revocable_portable) || self.permits(region, offset, len, store)
    }

    pub(crate) fn bytes<'a>(&self, region: &'a RegionModel, offset: usize, len: usize) -> &'a [u8] {
        &region.bytes[self.offset + offset..][..len]
    }

    /// All-ones, but for what was stored there meanwhile.
    fn ones(&self, offset: usize, len: usize) -> Allowed {
        let byte = |at| [0xff, self.ghost.get(&at).copied().unwrap_or(0xff)];
        Allowed::Either((offset..offset + len).map(byte).collect())
    }
}

impl Model {
    /// One load, store or read-modify-write.
    pub(super) fn access(&self, op: &Op) -> Expected {
        let (slot, via, width, at, store) = match *op {
            Op::Load { mapping, via, width, at } => (mapping, via, width, at, false),
            Op::Store { mapping, via, width, at, .. } => (mapping, via, width, at, true),
            Op::Modify { mapping, width, at, .. } => (mapping, Via::Accessor, width, at, true),
            _ => return None,
        };
        let (mapping, region) = self.mapping(slot)?;
        let offset = at.offset(region.page);
        let checked = mapping.check(offset, width);
        if via == Via::Raw {
            // Beyond the mapping is somebody else's memory.
            return checked.ok().and_then(|()| self.raw(mapping, region, offset, width, store));
        }
        let refused = |error| Some(is(Answer::Refused(error)));
        if let Err(error) = checked {
            return refused(error);
        }
        if store && mapping.read_only {
            return refused(AccessError::ReadOnly { offset });
        }
        let flags = match via {
            Via::Try => Some(FaultFlags::NOWAIT),
            Via::With(flags) => Some(flags),
            Via::Accessor | Via::Register | Via::Raw => None,
        };
        if let Some(Err(illegal)) = flags.map(legal) {
            return refused(AccessError::Flags(illegal));
        }
        let by_itself = matches!(via, Via::Accessor | Via::Register);
        match self.meets(mapping) {
            Meets::Memory if by_itself && !mapping.permits_accessor(region, offset, width, store) => {
                refused(AccessError::NoMemory { offset })
            }
            Meets::Memory => Some(match op {
                Op::Load { .. } => is(Answer::Bytes(mapping.bytes(region, offset, width).to_vec())),
                Op::Modify { modify: Modify::Exchange(current), .. } => {
                    let found = mapping.bytes(region, offset, width);
                    let same = found == &current.to_le_bytes()[..width];
                    is(if same { Answer::Bytes(found.to_vec()) } else { Answer::Found(found.to_vec()) })
                }
                Op::Modify { .. } => is(Answer::Bytes(mapping.bytes(region, offset, width).to_vec())),
                _ => is(Answer::Done),
            }),
            Meets::Disabled => refused(AccessError::Disabled { offset }),
            Meets::Gone => refused(AccessError::Gone { offset }),
            Meets::Ones => Some(match op {
                // A register is a raw pointer that recovers.
                Op::Load { via: Via::Register, .. } => vec![mapping.ones(offset, width)],
                Op::Store { .. } => is(Answer::Done),
                Op::Modify { modify: Modify::Exchange(_), .. } => is(Answer::Found(vec![0xff; width])),
                _ => is(Answer::Bytes(vec![0xff; width])),
            }),
            Meets::Waits if flags.is_some_and(|flags| flags.contains(FaultFlags::RETRY_NOWAIT)) => {
                refused(AccessError::WouldBlock { offset })
            }
            Meets::Waits => None,
        }
    }

    fn raw(&self, mapping: &MappingModel, region: &RegionModel, offset: usize, width: usize, store: bool) -> Expected {
        let reached = match self.meets(mapping) {
            meets if !mapping.permits(region, offset, width, store) => {
                let plain = meets == Meets::Memory && !mapping.own;
                return Some(if plain { is(Answer::Signal) } else { vec![Allowed::AnySignal] });
            }
            Meets::Waits if !mapping.own => return None,
            Meets::Disabled | Meets::Gone | Meets::Waits => return Some(is(Answer::Bus)),
            _ if store => Allowed::Is(Answer::Done),
            Meets::Memory => Allowed::Is(Answer::Bytes(mapping.bytes(region, offset, width).to_vec())),
            Meets::Ones => mapping.ones(offset, width),
        };
        Some(if mapping.own { vec![reached, Allowed::Is(Answer::Bus)] } else { vec![reached] })
    }

    /// Bulk copies, and system calls.
    pub(super) fn copy(&self, op: &Op) -> Expected {
        let (slot, at, len, store) = match *op {
            Op::CopyOut { mapping, at, len } => (mapping, at, len, false),
            Op::CopyIn { mapping, at, len, .. } | Op::Fill { mapping, at, len, .. } => (mapping, at, len, true),
            Op::Call { mapping, call, at, len } => (mapping, at, len, matches!(call, Call::Read(_))),
            _ => return None,
        };
        let (mapping, region) = self.mapping(slot)?;
        let offset = at.offset(region.page);
        let inside = offset.checked_add(len).is_some_and(|end| end <= mapping.len);
        if let Op::Call { call, .. } = op {
            return if inside && len > 0 { self.call(mapping, region, offset, len, *call) } else { None };
        }
        let stopped = |error| Some(is(Answer::Stopped(CopyError { done: 0, error })));
        let permitted = !inside || mapping.permits_accessor(region, offset, len, store);
        if !permitted && !one_page(region, offset, len) {
            // How far it comes is another question.
            return None;
        }
        if !inside {
            return stopped(AccessError::OutOfBounds { offset, size: len, len: mapping.len });
        }
        if store && mapping.read_only {
            return stopped(AccessError::ReadOnly { offset });
        }
        match self.meets(mapping) {
            _ if len == 0 => Some(is(if store { Answer::Done } else { Answer::Bytes(Vec::new()) })),
            Meets::Disabled => stopped(AccessError::Disabled { offset }),
            Meets::Gone => stopped(AccessError::Gone { offset }),
            Meets::Waits => None,
            Meets::Memory if !permitted => stopped(AccessError::NoMemory { offset }),
            _ if store => Some(is(Answer::Done)),
            Meets::Memory => Some(is(Answer::Bytes(mapping.bytes(region, offset, len).to_vec()))),
            // Not asked for the state first: what a raw store has left there may be found.
            Meets::Ones => Some(vec![mapping.ones(offset, len)]),
        }
    }

    fn call(&self, mapping: &MappingModel, region: &RegionModel, offset: usize, len: usize, call: Call) -> Expected {
        let refused = Allowed::Is(Answer::Errno(EFAULT));
        // Where each page is reached or not by itself, a call may end in the middle.
        let piecemeal = mapping.own || region.strategy == Strategy::Zap && !self.machine.kernel_faults;
        let permitted = mapping.permits(region, offset, len, matches!(call, Call::Read(_)));
        if (piecemeal || !permitted) && !one_page(region, offset, len) {
            return None;
        }
        let reached = match self.meets(mapping) {
            _ if !permitted => return Some(vec![refused]),
            Meets::Disabled | Meets::Gone => return Some(vec![refused]),
            Meets::Waits => {
                let at_once = mapping.own || region.memory == Memory::Device || !self.machine.kernel_faults;
                return at_once.then(|| vec![refused]);
            }
            Meets::Memory if call == Call::Vm => {
                Allowed::Is(Answer::Bytes(mapping.bytes(region, offset, len).to_vec()))
            }
            Meets::Ones if call == Call::Vm => mapping.ones(offset, len),
            Meets::Memory | Meets::Ones => Allowed::Is(Answer::Done),
        };
        Some(if piecemeal { vec![reached, refused] } else { vec![reached] })
    }

    /// Faults on a caller's behalf, and threads that wait.
    pub(super) fn fault(&self, op: &Op) -> Expected {
        match *op {
            Op::FaultRegion { region, at, who } => {
                let (_, region) = self.region(region)?;
                fault(region, at.offset(region.page), region.bytes.len(), who)
            }
            Op::FaultMapping { mapping, at, who } => {
                let (mapping, region) = self.mapping(mapping)?;
                fault(region, at.offset(region.page), mapping.len, Faulter { policy: mapping.policy, ..who })
            }
            Op::Wait { mapping, what, at } => {
                let (mapping, region) = self.mapping(mapping)?;
                let (offset, stores) = (at.offset(region.page), matches!(what, Waiter::Store(_)));
                let there = mapping.check(offset, 8).is_ok() && mapping.permits(region, offset, 8, stores);
                let waits = match what {
                    Waiter::Load => true,
                    Waiter::Store(_) => !mapping.read_only,
                    Waiter::Raw => !mapping.own,
                    Waiter::Call => !mapping.own && region.memory != Memory::Device && self.machine.kernel_faults,
                };
                // What stores at the same time as others load has no one answer.
                let alone = !self.waiting.iter().any(|(id, writes)| *id == mapping.region && (stores || *writes));
                let can = there && waits && alone && self.waiting.len() < 3 && self.meets(mapping) == Meets::Waits;
                can.then(|| is(Answer::Done))
            }
            _ => None,
        }
    }
}

fn one_page(region: &RegionModel, offset: usize, len: usize) -> bool {
    offset / region.page == (offset + len.max(1) - 1) / region.page
}

/// The tables of `fault::decide`, for a region that is at rest.
fn fault(region: &RegionModel, offset: usize, len: usize, who: Faulter) -> Expected {
    use FaultFlags as F;
    let Faulter { flags, policy, cancelled } = who;
    Some(is(if let Err(illegal) = legal(flags) {
        Answer::NotFaulted(FaultError::Flags(illegal))
    } else if offset >= len {
        Answer::NotFaulted(FaultError::OutOfBounds { offset, len })
    } else {
        Answer::Fault(match region.state {
            State::Enabled | State::Ending => Outcome::Mapped,
            _ if cancelled && flags.intersects(F::KILLABLE | F::INTERRUPTIBLE) && !flags.contains(F::RETRY_NOWAIT) => {
                Outcome::Killed
            }
            _ if cancelled => Outcome::Sigbus,
            State::Disabled if policy == OnDisabled::Block => match flags.contains(F::RETRY_NOWAIT) {
                true => Outcome::Retry { lock: LockAfter::Held },
                false => return None,
            },
            State::Disabled | State::Gone => Outcome::Sigbus,
        })
    }))
}
