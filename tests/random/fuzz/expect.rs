//! What an operation may answer, from what the model holds; nothing is changed.

mod access;

use super::model::{Allowed, Answer, Expected, Model, RegionModel, State, There, is};
use super::op::{Build, How, Memory, Op, Rough, Verb, View};
use revocable_mmio::fault::IllegalFlags;
use revocable_mmio::{AccessError, CopyError, OnDisabled, PinError, Strategy};

impl Model {
    /// `None`: there is nothing to do.
    pub(crate) fn expect(&self, op: &Op) -> Expected {
        match *op {
            // Without a thread that waits for guards and pins it never ends.
            Op::DropRegion { region } | Op::Region { region, .. } if self.ends_never(region) => None,
            // What else regions are made of the tests have to make.
            Op::Region { build, .. } if self.limit.is_some() && build.memory != Memory::Memfd => None,
            Op::Region { build, .. } if self.limit.is_some() => {
                Some(vec![Allowed::Is(self.build(build)), Allowed::NotMade])
            }
            Op::Region { build, .. } => Some(is(self.build(build))),
            Op::DropRegion { region } => self.region(region).map(|_| is(Answer::Done)),
            Op::Map { region, how, .. } => {
                let (_, region) = self.region(region)?;
                let fails =
                    self.unserved && region.strategy == Strategy::Zap || region.file_lost || self.limit.is_some();
                let mut allowed = is(self.map(region, how));
                allowed.extend(fails.then_some(Allowed::NotMade));
                Some(allowed)
            }
            Op::Unmap { mapping } | Op::Shed { mapping } => self.mapping(mapping).map(|_| is(Answer::Done)),
            Op::Protect { mapping, pages, rights } => {
                let (mapping, _) = self.mapping(mapping)?;
                let hole = || mapping.pages[pages.range()].iter().any(|page| page.there == There::Hole);
                match () {
                    () if self.limit.is_some() => None,
                    () if !mapping.has_pages(pages) => Some(is(Answer::NotProtected("out of range"))),
                    () if rights > mapping.most() => Some(is(Answer::NotProtected("read-only"))),
                    () if mapping.blurred => {
                        Some(vec![Allowed::Is(Answer::Done), Allowed::Is(Answer::NotProtected("system call"))])
                    }
                    () if hole() => Some(is(Answer::NotProtected("system call"))),
                    () => Some(is(Answer::Done)),
                }
            }
            Op::Rough { mapping, pages, what } => {
                let (mapping, _) = self.mapping(mapping)?;
                let changes = matches!(what, Rough::Hole | Rough::Fill | Rough::Protect(_));
                let may = mapping.has_pages(pages) && !(changes && (self.limit.is_some() || mapping.blurred));
                may.then(|| is(Answer::Done))
            }
            Op::Lose { .. } => self.limit.is_none().then(|| is(Answer::Done)),
            Op::Fork => self.limit.is_none().then(|| is(Answer::Done)),
            Op::Limit(_) => self.limit.is_none().then(|| is(Answer::Done)),
            Op::Unlimit => self.limit.map(|_| is(Answer::Done)),
            Op::Disable { region, how } => {
                let (id, region) = self.region(region)?;
                match region.state {
                    // On an error it is as before.
                    State::Enabled => {
                        let fails = self.limit.map(|_| Allowed::Failed { enabled: self.slot_of(id) });
                        let mut allowed = self.change(id, how, Answer::Changed(true))?;
                        allowed.extend(fails);
                        Some(allowed)
                    }
                    _ => Some(is(Answer::Changed(false))),
                }
            }
            Op::Enable { region, .. } => {
                let (id, region) = self.region(region)?;
                let mut allowed = is(Answer::Changed(region.state == State::Disabled));
                if region.state == State::Disabled {
                    allowed.extend(self.may_stay_away(id));
                }
                Some(allowed)
            }
            Op::Reset { region, how, at, .. } => {
                let (id, region) = self.region(region)?;
                if at.offset(region.page) >= region.bytes.len() {
                    return None;
                }
                // There is none that gives up.
                let how = if how == How::Timeout { How::Wait } else { how };
                let mut allowed = self.change(id, how, Answer::Done)?;
                allowed.extend(self.may_stay_away(id));
                Some(allowed)
            }
            Op::OwnerRead { region, at, len } => {
                let (_, region) = self.region(region)?;
                Some(is(match owners(region, at.offset(region.page), len) {
                    Ok(range) => Answer::Bytes(region.bytes[range].to_vec()),
                    Err(stopped) => stopped,
                }))
            }
            Op::OwnerFill { region, at, len, .. } => {
                let (_, region) = self.region(region)?;
                Some(is(owners(region, at.offset(region.page), len).map_or_else(|stopped| stopped, |_| Answer::Done)))
            }
            Op::Pin { region, from, to, flags, .. } => {
                let (_, region) = self.region(region)?;
                let (start, end, len) = (from.offset(region.page), to.offset(region.page), region.bytes.len());
                Some(is(if start >= end || end > len {
                    Answer::NotPinned(PinError::OutOfRange { start, end, len })
                } else if let Err(illegal) = legal(flags) {
                    Answer::NotPinned(PinError::Flags(illegal))
                } else if region.state == State::Enabled {
                    Answer::Done
                } else {
                    Answer::NotPinned(PinError::Disabled)
                }))
            }
            Op::Unpin { pin } => self.pins[pin].map(|_| is(Answer::Done)),
            Op::Guard { mapping } => {
                let (_, region) = self.mapping(mapping)?;
                let offset = AccessError::WHOLE;
                let busy = AccessError::WouldBlock { offset };
                Some(match region.state {
                    State::Enabled => is(Answer::Done),
                    // Inside of another guard it is had; otherwise that depends on how far the region's end has come.
                    State::Ending if region.guards > 0 => is(Answer::Done),
                    State::Ending => vec![Allowed::Is(Answer::Done), Allowed::Is(Answer::Refused(busy))],
                    State::Disabled => is(Answer::Refused(AccessError::Disabled { offset })),
                    State::Gone => is(Answer::Refused(AccessError::Gone { offset })),
                })
            }
            Op::Unguard => self.guards.last().map(|_| is(Answer::Done)),
            Op::Group { .. } => Some(is(Answer::Done)),
            Op::All { group, verb } => self.all(self.groups[group].as_ref()?, verb),
            Op::Load { .. } | Op::Store { .. } | Op::Modify { .. } => self.access(op),
            Op::CopyOut { .. } | Op::CopyIn { .. } | Op::Fill { .. } | Op::Call { .. } => self.copy(op),
            Op::FaultRegion { .. } | Op::FaultMapping { .. } | Op::Wait { .. } => self.fault(op),
        }
    }

    fn build(&self, build: Build) -> Answer {
        if build.pages == 0 {
            Answer::NotMade("empty")
        } else if (self.machine.is_legal)(build.strategy, build.memory) {
            Answer::Done
        } else {
            Answer::NotMade("strategy")
        }
    }

    fn map(&self, region: &RegionModel, how: View) -> Answer {
        match self.part(region, how) {
            Err(why) => Answer::NotMade(why),
            Ok(_) if how.policy == OnDisabled::Block && !self.machine.userfaultfd => Answer::NotMade("policy"),
            Ok(_) => Answer::Done,
        }
    }

    /// Offset and length of a mapping, or what is wrong with them.
    pub(crate) fn part(&self, region: &RegionModel, how: View) -> Result<(usize, usize), &'static str> {
        let offset = how.offset.offset(region.page);
        let rest = region.bytes.len().checked_sub(offset).ok_or("out of range")?;
        let len = how.len.map_or(rest, |len| len.offset(region.page));
        match () {
            () if len == 0 => Err("empty"),
            () if offset % region.page != 0 || len % region.page != 0 => Err("unaligned"),
            () if len > rest => Err("out of range"),
            () => Ok((offset, len)),
        }
    }

    /// A revocation (or a reset) of a region, that returns `done` if nothing is in the way.
    fn change(&self, id: usize, how: How, done: Answer) -> Expected {
        let guards = self.regions[id].guards;
        let (pins, stubborn) = self.pins(id);
        match how {
            _ if guards > 0 => Some(is(Answer::WouldDeadlock { guards })),
            How::Try if pins > 0 => Some(is(Answer::Busy { guards, pins })),
            // Nothing would end the wait.
            How::Wait if stubborn > 0 => None,
            How::Timeout if stubborn > 0 => Some(is(Answer::TimedOut { guards, pins: stubborn })),
            _ => Some(is(done)),
        }
    }

    fn all(&self, members: &[usize], verb: Verb) -> Expected {
        let mut obstacles = Vec::new();
        for &id in members {
            match self.regions[id].state {
                // Whether it is busy or gone is a question of time.
                State::Ending => return None,
                State::Gone => obstacles.push(Allowed::Is(Answer::Gone)),
                // It is left alone.
                State::Enabled if verb == Verb::Enable => {}
                State::Enabled | State::Disabled => match self.change(id, How::Try, Answer::Done)?.pop()? {
                    Allowed::Is(Answer::Done) => {}
                    obstacle => obstacles.push(obstacle),
                },
            }
        }
        if obstacles.is_empty() {
            obstacles = is(Answer::Done);
        }
        obstacles.extend(members.iter().filter_map(|id| self.may_stay_away(*id)));
        Some(obstacles)
    }

    fn ends_never(&self, slot: usize) -> bool {
        let held = |(id, region): (usize, &RegionModel)| region.guards > 0 || self.pins(id).0 > 0;
        self.limit.is_some() && self.region(slot).is_some_and(held)
    }

    /// Can it be that a region's memory does not come back?
    fn may_stay_away(&self, id: usize) -> Option<Allowed> {
        let region = &self.regions[id];
        let unserved = self.unserved && region.strategy == Strategy::Zap;
        (self.limit.is_some() || unserved || region.file_lost).then_some(Allowed::Failed { enabled: 0 })
    }

    /// The bit of the slot that a region is in.
    fn slot_of(&self, id: usize) -> usize {
        self.slots.iter().position(|slot| *slot == Some(id)).map_or(0, |slot| 1 << slot)
    }
}

/// What fault flags contradict themselves, from their documentation.
fn legal(flags: revocable_mmio::fault::FaultFlags) -> Result<(), IllegalFlags> {
    use revocable_mmio::fault::FaultFlags as F;
    const KNOWN: u32 = 0b10_0111_1101;
    match flags.bits() {
        bits if bits & !KNOWN != 0 => Err(IllegalFlags::Unknown { flags: bits & !KNOWN }),
        bits if bits & F::ALLOW_RETRY.bits() != 0 => Ok(()),
        bits if bits & F::RETRY_NOWAIT.bits() != 0 => Err(IllegalFlags::NowaitWithoutRetry { flags }),
        bits if bits & F::TRIED.bits() != 0 => Err(IllegalFlags::TriedWithoutRetry { flags }),
        _ => Ok(()),
    }
}

/// A range of the owner's view, or what is answered if it is not inside.
fn owners(region: &RegionModel, offset: usize, size: usize) -> Result<std::ops::Range<usize>, Answer> {
    let len = region.bytes.len();
    let end = offset.checked_add(size).filter(|end| *end <= len);
    let error = AccessError::OutOfBounds { offset, size, len };
    end.map(|end| offset..end).ok_or(Answer::Stopped(CopyError { done: 0, error }))
}
