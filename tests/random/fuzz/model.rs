//! What a sequence is to come to, in bytes and states: no system call, no thread, nothing of the crate but its error types.
//!
//! [`Model::expect`] answers what an operation may answer and changes nothing; [`Model::apply`] then takes note of what it
//! did answer, as there are operations that may go one way or another.

mod answer;

use super::op::{Limit, Op, Pages, Rights};
pub(crate) use answer::{Allowed, Answer, Expected, Machine, is};
use revocable_mmio::{OnDisabled, Strategy};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Enabled,
    Disabled,
    /// Dropped, while guards or pins of it are held.
    Ending,
    Gone,
}

#[derive(Debug)]
pub(crate) struct RegionModel {
    pub(crate) page: usize,
    pub(crate) strategy: Strategy,
    pub(crate) trim: bool,
    pub(crate) state: State,
    pub(crate) bytes: Vec<u8>,
    pub(crate) guards: u64,
    /// Its descriptor is gone.
    pub(crate) file_lost: bool,
    /// How often a range that was to be revoked had a hole, at the most. `None`: there may be other reasons.
    pub(crate) degraded: Option<u64>,
}

/// One page of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// What the crate was told.
    pub(crate) told: Rights,
    /// Of what is there now.
    pub(crate) now: Rights,
    pub(crate) there: There,
}

/// What stands in a page of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum There {
    /// What the crate has put there.
    Own,
    /// Nothing: the application has unmapped it.
    Hole,
    /// Memory of the application's.
    Foreign,
}

/// What the application's own memory is full of.
pub(crate) const FOREIGN: u8 = 0xf0;

/// What regions begin with when a child is forked.
pub(crate) const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

#[derive(Debug)]
pub(crate) struct MappingModel {
    /// Index of its region, dropped or not.
    pub(crate) region: usize,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) read_only: bool,
    pub(crate) policy: OnDisabled,
    /// The faulting thread resolves its own faults: raw accesses may be refused at any time.
    pub(crate) own: bool,
    /// Nothing but accessors waits.
    pub(crate) accessors_only: bool,
    /// What raw stores have left in a mapping that answers all-ones; they may be read back until it is live again.
    pub(crate) ghost: BTreeMap<usize, u8>,
    pub(crate) pages: Vec<Page>,
    /// What was stored in the application's own memory.
    pub(crate) foreign: BTreeMap<usize, u8>,
    /// Memory of the application's, in the place of all of the mapping, may have been put aside instead of the page tables. What
    /// waits for the mapping would meet it.
    pub(crate) mistaken: bool,
    /// What stands there came about in want of something, and may refuse in another way than it should.
    pub(crate) blurred: bool,
}

impl MappingModel {
    /// The rights that it was made with.
    pub(crate) fn most(&self) -> Rights {
        if self.read_only { Rights::Loads } else { Rights::All }
    }

    pub(crate) fn has(&self, there: There) -> bool {
        self.pages.iter().any(|page| page.there == there)
    }

    /// Nothing that the application has done to it is left.
    pub(crate) fn is_whole(&self) -> bool {
        self.pages.iter().all(|page| page.there == There::Own && page.now == page.told)
    }

    pub(crate) fn has_pages(&self, pages: Pages) -> bool {
        pages.count > 0 && pages.first + pages.count <= self.pages.len()
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PinModel {
    pub(crate) region: usize,
    pub(crate) polite: bool,
}

/// What an access that reaches a mapping meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meets {
    Memory,
    Disabled,
    Gone,
    Ones,
    Waits,
}

pub(crate) struct Model {
    pub(crate) machine: Machine,
    /// Every region there ever was.
    pub(crate) regions: Vec<RegionModel>,
    pub(crate) slots: [Option<usize>; super::op::REGIONS],
    pub(crate) mappings: [Option<MappingModel>; super::op::MAPPINGS],
    pub(crate) pins: [Option<PinModel>; super::op::PINS],
    pub(crate) groups: [Option<Vec<usize>>; super::op::GROUPS],
    /// The regions of the guards held, the last one taken last.
    pub(crate) guards: Vec<usize>,
    /// Regions that threads wait for, and whether they store.
    pub(crate) waiting: Vec<(usize, bool)>,
    /// There is little left of something.
    pub(crate) limit: Option<Limit>,
    /// Userfaultfds were lost.
    pub(crate) unserved: bool,
    /// How often something was changed that waiting threads depend on.
    pub(crate) wants: usize,
}

impl Model {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            regions: Vec::new(),
            slots: Default::default(),
            mappings: Default::default(),
            pins: Default::default(),
            groups: Default::default(),
            guards: Vec::new(),
            waiting: Vec::new(),
            limit: None,
            unserved: false,
            wants: 0,
        }
    }

    pub(crate) fn region(&self, slot: usize) -> Option<(usize, &RegionModel)> {
        self.slots[slot].map(|id| (id, &self.regions[id]))
    }

    pub(crate) fn mapping(&self, slot: usize) -> Option<(&MappingModel, &RegionModel)> {
        self.mappings[slot].as_ref().map(|mapping| (mapping, &self.regions[mapping.region]))
    }

    pub(crate) fn meets(&self, mapping: &MappingModel) -> Meets {
        match (self.regions[mapping.region].state, mapping.policy) {
            (State::Enabled | State::Ending, _) => Meets::Memory,
            (_, OnDisabled::AllOnes) => Meets::Ones,
            (State::Gone, _) => Meets::Gone,
            (State::Disabled, OnDisabled::Block) => Meets::Waits,
            (State::Disabled, _) => Meets::Disabled,
        }
    }

    /// Pins of a region: all of them, and those whose holders don't give them back when told.
    pub(crate) fn pins(&self, region: usize) -> (usize, usize) {
        let held = || self.pins.iter().flatten().filter(|pin| pin.region == region);
        (held().count(), held().filter(|pin| !pin.polite).count())
    }

    /// May a mapping refuse otherwise than it should, or also where it should not?
    pub(crate) fn doubts(&self, mapping: &MappingModel) -> bool {
        mapping.blurred || self.unserved && self.regions[mapping.region].strategy == Strategy::Zap
    }

    /// Does an operation map for good what is no mapping of the crate's, at an address of the kernel's choice: a thread's stack,
    /// an owner's view? Holes are filled before, as nothing else may be mapped there.
    pub(crate) fn maps(&self, op: &Op) -> bool {
        let trims = |id: &usize| self.regions[*id].trim;
        match op {
            Op::Disable { region, .. } => self.slots[*region].as_ref().is_some_and(trims),
            Op::All { group, .. } => self.groups[*group].iter().flatten().any(trims),
            Op::Region { .. } | Op::DropRegion { .. } | Op::Map { .. } | Op::Wait { .. } => true,
            Op::Fork | Op::Limit(Limit::Mappings(_)) | Op::Lose { .. } => true,
            _ => false,
        }
    }

    /// Pages of mappings in which there is nothing.
    pub(crate) fn holes(&self) -> Vec<(usize, Pages)> {
        let mut holes = Vec::new();
        for (slot, mapping) in self.mappings.iter().enumerate() {
            let pages = mapping.iter().flat_map(|mapping| mapping.pages.iter().enumerate());
            let empty = pages.filter(|(_, page)| page.there == There::Hole);
            holes.extend(empty.map(|(first, _)| (slot, Pages { first, count: 1 })));
        }
        holes
    }
}
