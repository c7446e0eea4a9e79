//! Where a store goes.

use crate::fuzz::model::{Meets, Model, Page, There};
use crate::fuzz::op::{Rights, Via};

/// The target of a store that succeeds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The memory, by the owner's view.
    Memory,
    /// The memory in the range, if the region is enabled.
    Enabled,
    /// The memory in the range, in any state.
    Whatever,
}

pub(super) fn reach(via: Via) -> Reach {
    match via {
        Via::Raw => Reach::Whatever,
        _ if cfg!(revocable_portable) => Reach::Memory,
        Via::Try | Via::With(_) => Reach::Memory,
        Via::Accessor | Via::Register => Reach::Enabled,
    }
}

impl Model {
    pub(super) fn store(&mut self, slot: usize, offset: usize, bytes: &[u8], by: Reach) {
        let Some((meets, size)) = self.mapping(slot).map(|(mapping, region)| (self.meets(mapping), region.page)) else {
            return;
        };
        let Some(mapping) = &mut self.mappings[slot] else { return };
        let placed = (offset..).zip(bytes.iter().copied());
        let theirs = |page: &Page| page.there == There::Foreign && page.now == Rights::All;
        let foreign = mapping.pages.get(offset / size).is_some_and(theirs);
        match meets {
            _ if foreign && (by == Reach::Whatever || by == Reach::Enabled && meets == Meets::Memory) => {
                mapping.foreign.extend(placed)
            }
            Meets::Memory => {
                let start = mapping.offset + offset;
                self.regions[mapping.region].bytes[start..start + bytes.len()].copy_from_slice(bytes);
            }
            Meets::Ones if by == Reach::Whatever => mapping.ghost.extend(placed),
            Meets::Ones | Meets::Disabled | Meets::Gone | Meets::Waits => {}
        }
    }
}
