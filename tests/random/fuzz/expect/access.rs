//! What accesses of mappings, copies, system calls and faults may answer.

use super::super::model::{
    Allowed, Answer, Expected, FOREIGN, MappingModel, Meets, Model, Page, RegionModel, State, There, is,
};
use super::super::op::{Call, Faulter, Modify, Op, Rights, Via, Waiter};
use super::legal;
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

    /// The pages that an access touches; none where it has nothing to do.
    fn touched(&self, region: &RegionModel, offset: usize, len: usize) -> &[Page] {
        let pages = offset / region.page..=(offset + len.max(1) - 1) / region.page;
        self.pages.get(pages).unwrap_or_default()
    }

    /// Is there something that the rights of all its pages allow?
    fn permits(&self, region: &RegionModel, offset: usize, len: usize, store: bool) -> bool {
        let needed = if store { Rights::All } else { Rights::Loads };
        let allows = |page: &Page| page.now >= needed && page.there != There::Hole;
        self.touched(region, offset, len).iter().all(allows)
    }

    /// Does an accessor meet memory of the application's?
    fn accessor_meets_foreign(&self, region: &RegionModel, offset: usize, len: usize) -> bool {
        !cfg!(revocable_portable) && self.meets_foreign(region, offset, len)
    }

    /// Does it meet memory of the application's?
    fn meets_foreign(&self, region: &RegionModel, offset: usize, len: usize) -> bool {
        self.touched(region, offset, len).iter().any(|page| page.there == There::Foreign)
    }

    /// Do the rights allow it that the crate was told?
    fn tells(&self, region: &RegionModel, offset: usize, len: usize, store: bool) -> bool {
        let needed = if store { Rights::All } else { Rights::Loads };
        self.touched(region, offset, len).iter().all(|page| page.told >= needed)
    }

    /// Why an access is refused that is not permitted while the region is enabled: the crate knows what it was told.
    fn not_permitted(&self, region: &RegionModel, offset: usize) -> AccessError {
        let told = self.touched(region, offset, 1).iter().all(|page| page.told == self.most());
        if told { AccessError::NoMemory { offset } } else { AccessError::Protected { offset } }
    }

    fn foreign_bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        (offset..offset + len).map(|at| self.foreign.get(&at).copied().unwrap_or(FOREIGN)).collect()
    }

    /// Where accessors use the owner's view, what has become of the mapping is none of their business.
    fn permits_accessor(&self, region: &RegionModel, offset: usize, len: usize, store: bool) -> bool {
        match cfg!(revocable_portable) {
            true => self.tells(region, offset, len, store),
            false => self.permits(region, offset, len, store),
        }
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
            // The memory beyond the mapping belongs to other code.
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
        let policy = match self.meets(mapping) {
            Meets::Memory if by_itself => return self.reach(op, mapping, region, offset, width, store),
            // By the owner's view, which has all rights.
            Meets::Memory if !mapping.tells(region, offset, width, store) => {
                Answer::Refused(AccessError::Protected { offset })
            }
            Meets::Memory => found(op, mapping.bytes(region, offset, width)),
            Meets::Disabled => Answer::Refused(AccessError::Disabled { offset }),
            Meets::Gone => Answer::Refused(AccessError::Gone { offset }),
            Meets::Ones => match op {
                Op::Store { .. } => Answer::Done,
                Op::Modify { modify: Modify::Exchange(_), .. } => Answer::Found(vec![0xff; width]),
                _ => Answer::Bytes(vec![0xff; width]),
            },
            Meets::Waits if flags.is_some_and(|flags| flags.contains(FaultFlags::RETRY_NOWAIT)) => {
                Answer::Refused(AccessError::WouldBlock { offset })
            }
            Meets::Waits => return None,
        };
        Some(is(policy))
    }

    /// An access of an enabled region by the mapping itself.
    fn reach(
        &self,
        op: &Op,
        mapping: &MappingModel,
        region: &RegionModel,
        offset: usize,
        width: usize,
        store: bool,
    ) -> Expected {
        let refused = Allowed::Is(Answer::Refused(mapping.not_permitted(region, offset)));
        let doubts = self.doubts(mapping);
        if mapping.blurred && (store || matches!(op, Op::Modify { .. })) && !mapping.is_whole() {
            return None;
        }
        let reached = match mapping.accessor_meets_foreign(region, offset, width) {
            true => found(op, &mapping.foreign_bytes(offset, width)),
            false => found(op, mapping.bytes(region, offset, width)),
        };
        Some(match mapping.permits_accessor(region, offset, width, store) {
            true if !doubts => is(reached),
            // On aarch64 an exchange that finds another value may store nothing, and then needs no right to.
            false
                if !doubts
                    && cfg!(target_arch = "aarch64")
                    && matches!(reached, Answer::Found(_))
                    && mapping.permits_accessor(region, offset, width, false) =>
            {
                vec![refused, Allowed::Is(reached)]
            }
            false if !doubts => vec![refused],
            _ => {
                let memory = found(op, mapping.bytes(region, offset, width));
                // Whether it was let through at the time.
                vec![refused, Allowed::Is(reached), Allowed::Is(memory)]
            }
        })
    }

    fn raw(&self, mapping: &MappingModel, region: &RegionModel, offset: usize, width: usize, store: bool) -> Expected {
        let (meets, doubts) = (self.meets(mapping), self.doubts(mapping));
        let permitted = mapping.permits(region, offset, width, store);
        if mapping.blurred && !mapping.is_whole() && (store || meets == Meets::Waits) {
            return None;
        }
        if !permitted && !mapping.blurred {
            let plain = meets == Meets::Memory && !mapping.own && !doubts;
            return Some(if plain { is(Answer::Signal) } else { vec![Allowed::AnySignal] });
        }
        if mapping.meets_foreign(region, offset, width) && !mapping.blurred {
            let bytes = mapping.foreign_bytes(offset, width);
            return Some(is(if store { Answer::Done } else { Answer::Bytes(bytes) }));
        }
        let reached = match meets {
            Meets::Waits if !mapping.accessors_only => return None,
            Meets::Disabled | Meets::Gone | Meets::Waits => Allowed::Is(Answer::Bus),
            _ if store => Allowed::Is(Answer::Done),
            Meets::Memory => Allowed::Is(Answer::Bytes(mapping.bytes(region, offset, width).to_vec())),
            Meets::Ones => mapping.ones(offset, width),
        };
        let mut allowed = vec![reached];
        if mapping.own {
            allowed.push(Allowed::Is(Answer::Bus));
        }
        if doubts {
            allowed.push(Allowed::AnySignal);
        }
        if mapping.blurred && !store {
            allowed.push(Allowed::Is(Answer::Bytes(mapping.foreign_bytes(offset, width))));
        }
        Some(allowed)
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
        let foreign = inside && mapping.accessor_meets_foreign(region, offset, len);
        if inside && (!permitted || foreign || self.doubts(mapping)) && !one_page(region, offset, len) {
            // How far it comes is another question.
            return None;
        }
        if !inside {
            return stopped(AccessError::OutOfBounds { offset, size: len, len: mapping.len });
        }
        if store && mapping.read_only {
            return stopped(AccessError::ReadOnly { offset });
        }
        let meets = self.meets(mapping);
        if len == 0 {
            return Some(is(if store { Answer::Done } else { Answer::Bytes(Vec::new()) }));
        }
        if mapping.blurred && !mapping.is_whole() {
            return None;
        }
        let early = |error| Allowed::Is(Answer::Stopped(CopyError { done: 0, error }));
        let refused = || early(mapping.not_permitted(region, offset));
        let reached = match meets {
            Meets::Disabled => return stopped(AccessError::Disabled { offset }),
            Meets::Gone => return stopped(AccessError::Gone { offset }),
            Meets::Waits => return None,
            Meets::Memory if !permitted => return Some(vec![refused()]),
            _ if store => Allowed::Is(Answer::Done),
            Meets::Memory if foreign => Allowed::Is(Answer::Bytes(mapping.foreign_bytes(offset, len))),
            Meets::Memory => Allowed::Is(Answer::Bytes(mapping.bytes(region, offset, len).to_vec())),
            Meets::Ones => Allowed::Is(Answer::Bytes(vec![0xff; len])),
        };
        let doubtful = meets == Meets::Memory && self.doubts(mapping);
        Some(std::iter::once(reached).chain(doubtful.then(refused)).collect())
    }

    fn call(&self, mapping: &MappingModel, region: &RegionModel, offset: usize, len: usize, call: Call) -> Expected {
        let refused = Allowed::Is(Answer::Errno(EFAULT));
        let doubts = self.doubts(mapping);
        let foreign = mapping.meets_foreign(region, offset, len);
        // Where each page is reached or not by itself, a call may end in the middle.
        let piecemeal = mapping.own || doubts || region.strategy == Strategy::Zap && !self.machine.kernel_faults;
        let stores = matches!(call, Call::Read(_));
        let permitted = mapping.permits(region, offset, len, stores);
        // The test makes a file for each of the others.
        let cannot = call != Call::Vm && self.limit.is_some() || mapping.blurred && !mapping.is_whole();
        if cannot || (piecemeal || foreign || !permitted) && !one_page(region, offset, len) {
            return None;
        }
        let reached = match self.meets(mapping) {
            _ if !permitted => return Some(vec![refused]),
            _ if foreign && call == Call::Vm => Allowed::Is(Answer::Bytes(mapping.foreign_bytes(offset, len))),
            _ if foreign => Allowed::Is(Answer::Done),
            // Those of the kernel never wait for long.
            Meets::Waits if mapping.blurred => return None,
            Meets::Disabled | Meets::Gone | Meets::Waits => return Some(vec![refused]),
            Meets::Memory if call == Call::Vm => {
                Allowed::Is(Answer::Bytes(mapping.bytes(region, offset, len).to_vec()))
            }
            Meets::Ones if call == Call::Vm => mapping.ones(offset, len),
            Meets::Memory | Meets::Ones => Allowed::Is(Answer::Done),
        };
        // What is the application's is there.
        Some(if piecemeal && !foreign { vec![reached, refused] } else { vec![reached] })
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
                let offset = at.offset(region.page);
                let mut allowed = fault(region, offset, mapping.len, Faulter { policy: mapping.policy, ..who })?;
                let served = region.strategy == Strategy::Zap;
                let there =
                    mapping.touched(region, offset.min(mapping.len - 1), 1).iter().all(|p| p.there == There::Own);
                let mapped = matches!(allowed[..], [Allowed::Is(Answer::Fault(Outcome::Mapped))]);
                if served && mapped && (!there || self.doubts(mapping)) {
                    allowed.push(Allowed::Is(Answer::Fault(Outcome::Sigbus)));
                }
                Some(allowed)
            }
            Op::Wait { mapping, what, at } => {
                let (mapping, region) = self.mapping(mapping)?;
                let (offset, stores) = (at.offset(region.page), matches!(what, Waiter::Store(_)));
                let there = mapping.check(offset, 8).is_ok()
                    && mapping.permits(region, offset, 8, stores)
                    && mapping.touched(region, offset, 8).iter().all(|page| page.told == mapping.most())
                    && !mapping.meets_foreign(region, offset, 8)
                    && !mapping.mistaken;
                let waits = match what {
                    Waiter::Load => true,
                    Waiter::Store(_) => !mapping.read_only,
                    Waiter::Raw => !mapping.accessors_only,
                };
                // What stores at the same time as others load has no one answer.
                let alone = !self.waiting.iter().any(|(id, writes)| *id == mapping.region && (stores || *writes));
                let wants = self.limit.is_some() || self.doubts(mapping);
                let can = there && waits && alone && !wants && self.waiting.len() < 3;
                (can && self.meets(mapping) == Meets::Waits).then(|| is(Answer::Done))
            }
            _ => None,
        }
    }
}

/// What an access answers that has found these bytes.
fn found(op: &Op, bytes: &[u8]) -> Answer {
    match op {
        Op::Store { .. } => Answer::Done,
        Op::Modify { modify: Modify::Exchange(current), .. } if bytes != &current.to_le_bytes()[..bytes.len()] => {
            Answer::Found(bytes.to_vec())
        }
        _ => Answer::Bytes(bytes.to_vec()),
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
