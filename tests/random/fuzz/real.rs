//! The crate's side of a sequence: the live objects, and each operation by the public interface.

mod access;
mod waiting;

use super::forked;
use super::model::{Answer, Model, RegionModel, SECRET, There};
use super::op::{Build, How, Op, Pages, Rights, Rough, Verb, View};
use super::rough::{self, Limited};
use super::run::RESET_FILLS;
use crate::support::matrix::Case;
use crate::support::raw;
use access::{call, fault, load, modify, store};
use revocable_mmio::{
    BuildError, CopyError, FaultAround, Holders, MapError, MapOptions, Mapping, Monitor, OnDisabled, Pin, Prot,
    ProtectError, Region, ResetGroup, RevokeError,
};
use std::sync::{Arc, Mutex};
use std::thread::{self};
use std::time::Duration;
pub(crate) use waiting::Waiting;

/// An access of a type that is chosen at run time.
macro_rules! by_width {
    ($width:expr, $of:ident($($arg:expr),*)) => {
        match $width {
            1 => $of::<u8>($($arg),*),
            2 => $of::<u16>($($arg),*),
            4 => $of::<u32>($($arg),*),
            _ => $of::<u64>($($arg),*),
        }
    };
}

/// A pin that its holder may drop when told.
type Held = Arc<Mutex<Option<Pin>>>;

/// The fields are in the order of their drop if a sequence fails: waiting threads wake when the regions go.
#[derive(Default)]
pub(crate) struct Real {
    pub(crate) pins: [Option<Held>; super::op::PINS],
    pub(crate) regions: [Option<Region>; super::op::REGIONS],
    pub(crate) mappings: [Option<Arc<Mapping>>; super::op::MAPPINGS],
    pub(crate) groups: [Option<ResetGroup>; super::op::GROUPS],
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) limited: Option<Limited>,
    /// Mappings of regions that end in the background, and those regions' numbers in the model.
    pub(crate) ending: Vec<(usize, Arc<Mapping>)>,
}

impl Real {
    /// Does one operation for which the model has a result. `patience` is for changes that give up.
    pub(crate) fn step(&mut self, op: &Op, model: &Model, patience: Duration) -> Answer {
        let page = |region: usize| self.regions[region].as_ref().map_or(1, Region::page_size);
        let mapping = |slot: usize| self.mappings[slot].clone().expect("the model has it too");
        let page_of = |slot: usize| model.mapping(slot).map_or(1, |(_, region)| region.page);
        let region = |slot: usize| self.regions[slot].as_ref().expect("the model has it too");
        match *op {
            Op::Region { region, build: how } => match build(how) {
                Ok(new) => {
                    self.watch_end(region, model);
                    self.regions[region] = Some(new);
                    Answer::Done
                }
                Err(BuildError::Empty { .. }) => Answer::NotMade("empty"),
                Err(BuildError::Strategy { .. }) => Answer::NotMade("strategy"),
                Err(_) => Answer::NotMade("system call"),
            },
            Op::DropRegion { region } => {
                self.watch_end(region, model);
                self.regions[region] = None;
                Answer::Done
            }
            Op::Map { mapping, region: of, how } => match region(of).map(options(how, page(of))) {
                Ok(new) => {
                    self.mappings[mapping] = Some(Arc::new(new));
                    Answer::Done
                }
                Err(MapError::Empty) => Answer::NotMade("empty"),
                Err(MapError::Unaligned { .. }) => Answer::NotMade("unaligned"),
                Err(MapError::OutOfRange { .. }) => Answer::NotMade("out of range"),
                Err(MapError::Wait { .. }) => Answer::NotMade("policy"),
                Err(_) => Answer::NotMade("system call"),
            },
            Op::Unmap { mapping } => {
                self.mappings[mapping] = None;
                Answer::Done
            }
            Op::Disable { region: of, how } => self.changed(match how {
                How::Wait => region(of).disable(),
                How::Try => region(of).try_disable(),
                How::Timeout => region(of).disable_timeout(patience),
            }),
            Op::Enable { region: of, how } => self.changed(match how {
                How::Try => region(of).try_enable(),
                How::Wait | How::Timeout => region(of).enable(),
            }),
            Op::Reset { region: of, how, at, byte } => {
                let at = at.offset(page(of));
                let mut ran = false;
                let fill = |owner: &revocable_mmio::OwnerView| {
                    ran = true;
                    owner.fill(at, byte, RESET_FILLS.min(owner.len() - at)).expect("inside");
                };
                let done = match how {
                    How::Try => region(of).try_reset(fill),
                    // There is no reset with a timeout.
                    How::Wait | How::Timeout => region(of).reset(fill),
                };
                self.done(done, ran)
            }
            Op::Load { mapping: of, via, width, at } => {
                by_width!(width, load(&mapping(of), via, at.offset(page_of(of))))
            }
            Op::Store { mapping: of, via, width, at, value } => {
                by_width!(width, store(&mapping(of), via, at.offset(page_of(of)), value))
            }
            Op::Modify { mapping: of, modify: how, width, at, value } => {
                by_width!(width, modify(&mapping(of), how, at.offset(page_of(of)), value))
            }
            Op::CopyOut { mapping: of, at, len } => {
                let mut into = vec![0x5c; len];
                let copied = mapping(of).read_slice(at.offset(page_of(of)), &mut into);
                copied.map_or_else(Answer::Stopped, |()| Answer::Bytes(into))
            }
            Op::CopyIn { mapping: of, at, len, byte } => {
                stopped(mapping(of).write_slice(at.offset(page_of(of)), &vec![byte; len]))
            }
            Op::Fill { mapping: of, at, len, byte } => stopped(mapping(of).fill(at.offset(page_of(of)), byte, len)),
            Op::Call { mapping: of, call: how, at, len } => {
                let addr = mapping(of).as_ptr().expose_provenance() + at.offset(page_of(of));
                call(how, addr, len)
            }
            Op::Shed { mapping: of } => {
                let mapping = mapping(of);
                // The advice may fail. Nothing is lost by it.
                let _ = raw::advise(mapping.as_ptr().addr(), mapping.len(), nix::libc::MADV_DONTNEED);
                Answer::Done
            }
            Op::Protect { mapping: of, pages, rights } => {
                let (range, rights) = (pages.range(), prot(rights));
                let size = page_of(of);
                match mapping(of).protect(range.start * size..range.end * size, rights) {
                    Ok(()) => Answer::Done,
                    Err(ProtectError::OutOfRange { .. }) => Answer::NotProtected("out of range"),
                    Err(ProtectError::ReadOnly) => Answer::NotProtected("read-only"),
                    Err(ProtectError::Sys(_)) => Answer::NotProtected("system call"),
                    Err(e) => panic!("{e}"),
                }
            }
            Op::Rough { mapping: of, pages, what } => {
                self.rough(of, pages, what, model);
                Answer::Done
            }
            Op::Lose { what, how } => {
                rough::lose(what, how);
                Answer::Done
            }
            Op::Fork => {
                for region in self.regions.iter().flatten() {
                    region.owner().write(0, SECRET).expect("the owner's view is always there");
                }
                let done = forked::child(self.regions.iter().flatten(), self.mappings.iter().flatten());
                done.map_or_else(|why| panic!("{why}"), |()| Answer::Done)
            }
            Op::Limit(limit) => {
                self.limited = Some(Limited::new(limit));
                Answer::Done
            }
            Op::Unlimit => {
                self.limited = None;
                Answer::Done
            }
            Op::OwnerRead { region: of, at, len } => {
                let mut into = vec![0x5c; len];
                let copied = region(of).owner().read_slice(at.offset(page(of)), &mut into);
                copied.map_or_else(Answer::Stopped, |()| Answer::Bytes(into))
            }
            Op::OwnerFill { region: of, at, len, byte } => {
                stopped(region(of).owner().fill(at.offset(page(of)), byte, len))
            }
            Op::Pin { pin: slot, region: of, from, to, flags, polite } => {
                let range = from.offset(page(of))..to.offset(page(of));
                match region(of).pin(range, flags) {
                    Ok(got) => {
                        self.pins[slot] = Some(hold(got, polite));
                        Answer::Done
                    }
                    Err(e) => Answer::NotPinned(e),
                }
            }
            Op::Unpin { pin } => {
                self.pins[pin] = None;
                Answer::Done
            }
            Op::Group { group, members } => {
                let slots = self.regions.iter().enumerate();
                let members = slots.filter(|(slot, _)| members >> slot & 1 == 1).filter_map(|(_, r)| r.as_ref());
                self.groups[group] = Some(ResetGroup::new(members));
                Answer::Done
            }
            Op::All { group, verb } => self.all(self.groups[group].as_ref().expect("the model has it too"), verb),
            Op::FaultRegion { region: of, at, who } => {
                let at = at.offset(page(of));
                fault(who, |caller, lock| region(of).fault(at, caller, lock))
            }
            Op::FaultMapping { mapping: of, at, who } => {
                let at = at.offset(page_of(of));
                fault(who, |caller, lock| mapping(of).fault(at, caller, lock))
            }
            Op::Wait { mapping: of, what, at } => {
                let id = model.mapping(of).expect("there is one").0.region;
                let waiting = Waiting::start(mapping(of), id, what, at.offset(page_of(of)), model.wants);
                // Long enough for most threads to wait. A later one is no failure.
                thread::sleep(Duration::from_micros(500));
                let still = !waiting.thread.is_finished();
                self.waiting.push(waiting);
                if still { Answer::Done } else { Answer::NotMade("it did not wait") }
            }
            // A guard is a frame of its own.
            Op::Guard { .. } | Op::Unguard => Answer::Done,
        }
    }

    /// A region that is about to be dropped while guards or pins of it are held will end in the background.
    fn watch_end(&mut self, slot: usize, model: &Model) {
        let held = |(id, region): &(usize, &RegionModel)| region.guards > 0 || model.pins(*id).0 > 0;
        if let (Some((id, _)), Some(region)) = (model.region(slot).filter(held), &self.regions[slot]) {
            let watch = region.map(MapOptions::new().accessors_only());
            self.ending.extend(watch.ok().map(|mapping| (id, Arc::new(mapping))));
        }
    }

    fn rough(&self, slot: usize, pages: Pages, what: Rough, model: &Model) {
        let (Some(mapping), Some((known, region))) = (&self.mappings[slot], model.mapping(slot)) else { return };
        let size = region.page;
        let addr = |page: usize| mapping.as_ptr().expose_provenance() + page * size;
        match what {
            Rough::Fill => {
                let holes = pages.range().filter(|page| known.pages[*page].there == There::Hole);
                holes.for_each(|page| rough::fill(addr(page), size, Rights::All));
            }
            Rough::Protect(rights) => {
                rough::treat(Rough::Protect(rights.min(known.most())), addr(pages.first), pages.count * size, size);
            }
            what => rough::treat(what, addr(pages.first), pages.count * size, size),
        }
    }

    /// True if a hole has been filled.
    pub(crate) fn is_taken(&self, slot: usize, pages: Pages, page_size: usize) -> bool {
        let mapping = self.mappings[slot].as_ref();
        mapping.is_some_and(|m| rough::is_taken(m.as_ptr().expose_provenance() + pages.first * page_size, page_size))
    }

    /// Fills a hole with memory that has no rights, after unmapping what has filled it already.
    pub(crate) fn fence(&self, slot: usize, pages: Pages, page_size: usize) {
        let Some(mapping) = &self.mappings[slot] else { return };
        let addr = mapping.as_ptr().expose_provenance() + pages.first * page_size;
        if self.is_taken(slot, pages, page_size) {
            raw::unmap(addr, page_size).expect("the application's");
        }
        rough::fill(addr, page_size, Rights::Nothing);
    }

    fn changed(&self, result: Result<bool, RevokeError>) -> Answer {
        result.map_or_else(|e| self.not_changed(e, false), Answer::Changed)
    }

    fn done(&self, result: Result<(), RevokeError>, ran: bool) -> Answer {
        result.map_or_else(|e| self.not_changed(e, ran), |()| Answer::Done)
    }

    fn not_changed(&self, e: RevokeError, ran: bool) -> Answer {
        let slots = || self.regions.iter().enumerate().filter_map(|(slot, region)| Some((slot, region.as_ref()?)));
        match e {
            RevokeError::Busy(who) => {
                let (guards, pins) = holders(&who);
                Answer::Busy { guards, pins }
            }
            RevokeError::TimedOut { holders: who, .. } => {
                let (guards, pins) = holders(&who);
                Answer::TimedOut { guards, pins }
            }
            RevokeError::WouldDeadlock { guards } => Answer::WouldDeadlock { guards },
            RevokeError::Gone => Answer::Gone,
            RevokeError::Sys { .. } | RevokeError::Window { .. } => {
                let enabled = slots().map(|(slot, region)| usize::from(region.is_enabled()) << slot).sum();
                Answer::Failed { ran, enabled }
            }
            e => panic!("{e}"),
        }
    }

    fn all(&self, group: &ResetGroup, verb: Verb) -> Answer {
        let mut ran = false;
        let done = match verb {
            Verb::Disable => group.try_disable().map(drop),
            Verb::Enable => group.try_enable().map(drop),
            Verb::Reset => group.try_reset(|views| {
                ran = true;
                for view in views {
                    view.fill(0, 0xe5, RESET_FILLS.min(view.len())).expect("inside");
                }
            }),
        };
        self.done(done.map_err(|e| e.source), ran)
    }
}

fn prot(rights: Rights) -> Prot {
    match rights {
        Rights::Nothing => Prot::None,
        Rights::Loads => Prot::Read,
        Rights::All => Prot::ReadWrite,
    }
}

fn build(how: Build) -> Result<Region, BuildError> {
    let case = Case { strategy: how.strategy, memory: how.memory, policy: OnDisabled::Sigbus };
    let mut builder = case.builder(how.pages);
    if how.disabled {
        builder = builder.disabled();
    }
    if how.trim {
        builder = builder.trim_detached();
    }
    if let Some(pages) = how.around {
        builder = builder.fault_around(if pages == 0 { FaultAround::Whole } else { FaultAround::Pages(pages) });
    }
    // A monitor that is passed in may have more rights than the process can get, so with one no strategy is refused.
    if let Some(monitor) = (how.own_monitor && case.is_legal()).then(|| Monitor::with_threads(2).ok()).flatten() {
        builder = builder.monitor(monitor);
    }
    builder.build()
}

fn options(how: View, page: usize) -> MapOptions {
    let mut options = MapOptions::new().offset(how.offset.offset(page)).on_disabled(how.policy);
    if let Some(len) = how.len {
        options = options.len(len.offset(page));
    }
    if how.read_only {
        options = options.read_only();
    }
    if how.accessors_only { options.accessors_only() } else { options }
}

fn hold(pin: Pin, polite: bool) -> Held {
    let held: Held = Arc::default();
    let theirs = Arc::downgrade(&held);
    let pin = match polite {
        true => pin.on_revoke(move || {
            if let Some(held) = theirs.upgrade() {
                let given_back = held.lock().expect("no panic").take();
                drop(given_back);
            }
        }),
        false => pin,
    };
    *held.lock().expect("no panic") = Some(pin);
    held
}

fn holders(holders: &Holders) -> (u64, usize) {
    (holders.guards.iter().map(|held| held.count).sum(), holders.pins)
}

fn stopped(result: Result<(), CopyError>) -> Answer {
    result.map_or_else(Answer::Stopped, |()| Answer::Done)
}
