//! What the application does by itself to mappings and descriptors.

use crate::fuzz::model::{Model, State, There};
use crate::fuzz::op::{Lost, Pages, Rights, Rough};
use revocable_mmio::{OnDisabled, Strategy};

impl Model {
    pub(super) fn rough(&mut self, slot: usize, pages: Pages, what: Rough) {
        let Some(size) = self.mapping(slot).map(|(_, region)| region.page) else { return };
        let Some(mapping) = &mut self.mappings[slot] else { return };
        let most = mapping.most();
        for at in pages.range() {
            let page = &mut mapping.pages[at];
            match what {
                Rough::Protect(rights) => page.now = rights.min(most),
                Rough::Hole => page.there = There::Hole,
                Rough::Fill if page.there == There::Hole => {
                    (page.there, page.now) = (There::Foreign, Rights::All);
                    mapping.foreign.retain(|byte, _| byte / size != at);
                }
                Rough::Fill | Rough::Lock | Rough::Unlock | Rough::Bind | Rough::Advise(_) => {}
            }
        }
    }

    /// Fills holes with memory that has no rights.
    pub(crate) fn fence(&mut self, slot: usize, pages: Pages) {
        self.rough(slot, pages, Rough::Fill);
        self.rough(slot, pages, Rough::Protect(Rights::Nothing));
    }

    /// Rights that could not be changed are those that the crate was told before, up to the first hole.
    pub(super) fn put_rights_back(&mut self, slot: usize, pages: Pages) {
        let Some(mapping) = &mut self.mappings[slot] else { return };
        for part in mapping.pages[pages.range()].chunk_by_mut(|one, other| one.told == other.told) {
            for page in part.iter_mut().take_while(|page| page.there != There::Hole) {
                page.now = page.told;
            }
        }
    }

    pub(super) fn lose(&mut self, what: Lost) {
        match what {
            // The crate makes new ones.
            Lost::Empty | Lost::Ones => {}
            Lost::Files => self.regions.iter_mut().for_each(|region| region.file_lost = true),
            Lost::Userfaultfds => {
                self.unserved = true;
                self.wants += 1;
                for mapping in self.mappings.iter_mut().flatten() {
                    let region = &mut self.regions[mapping.region];
                    // A stand-in is plain memory now.
                    mapping.blurred |= mapping.policy == OnDisabled::Block && region.state == State::Disabled;
                    if region.strategy == Strategy::Zap {
                        region.degraded = None;
                    }
                }
            }
        }
    }
}
