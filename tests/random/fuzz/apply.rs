//! How operations change the model.

mod foreign;
mod store;

use super::model::{Answer, MappingModel, Model, Page, PinModel, RegionModel, SECRET, State, There};
use super::op::{Call, How, Modify, Op, Verb, Via, Waiter};
use revocable_mmio::{OnDisabled, Strategy};
use std::collections::BTreeMap;
use store::{Reach, reach};

impl Model {
    /// Records the result of an operation.
    pub(crate) fn apply(&mut self, op: &Op, answer: &Answer) {
        self.tell_pins(op);
        if let Answer::Failed { ran, enabled } = *answer {
            return self.failed(op, ran, enabled);
        }
        if let (Op::Protect { mapping, pages, .. }, Answer::NotProtected("system call")) = (op, answer) {
            return self.put_rights_back(*mapping, *pages);
        }
        let done = matches!(answer, Answer::Done | Answer::Changed(true) | Answer::Bytes(_));
        if !done {
            return;
        }
        match *op {
            Op::Region { region, build } => {
                self.drop_region(region);
                let page = if build.memory == super::op::Memory::Huge { 2 << 20 } else { crate::support::page_size() };
                self.slots[region] = Some(self.regions.len());
                self.regions.push(RegionModel {
                    page,
                    strategy: build.strategy,
                    trim: build.trim,
                    state: if build.disabled { State::Disabled } else { State::Enabled },
                    bytes: vec![0; build.pages * page],
                    guards: 0,
                    file_lost: false,
                    degraded: self.limit.is_none().then_some(0),
                });
            }
            Op::DropRegion { region } => self.drop_region(region),
            Op::Map { mapping, region, how } => {
                let Some((id, model)) = self.region(region) else { return };
                let Ok((offset, len)) = self.part(model, how) else { return };
                let pages = len / model.page;
                let own = how.accessors_only && model.strategy == Strategy::Zap;
                let mut new = MappingModel {
                    region: id,
                    offset,
                    len,
                    read_only: how.read_only,
                    policy: how.policy,
                    own,
                    accessors_only: how.accessors_only,
                    ghost: BTreeMap::new(),
                    pages: Vec::new(),
                    foreign: BTreeMap::new(),
                    mistaken: false,
                    blurred: self.limit.is_some(),
                };
                let most = new.most();
                new.pages = vec![Page { told: most, now: most, there: There::Own }; pages];
                self.mappings[mapping] = Some(new);
            }
            Op::Protect { mapping, pages, rights } => {
                let Some(mapping) = &mut self.mappings[mapping] else { return };
                for page in &mut mapping.pages[pages.range()] {
                    (page.told, page.now) = (rights, rights);
                }
                mapping.mistaken = false;
                self.wants += 1;
            }
            Op::Rough { mapping, pages, what } => self.rough(mapping, pages, what),
            Op::Lose { what, .. } => self.lose(what),
            Op::Fork => {
                for id in self.slots.into_iter().flatten() {
                    self.regions[id].bytes[..8].copy_from_slice(&SECRET.to_le_bytes());
                }
            }
            Op::Limit(limit) => {
                self.limit = Some(limit);
                self.wants += 1;
            }
            Op::Unlimit => self.limit = None,
            Op::Unmap { mapping } => self.mappings[mapping] = None,
            Op::Disable { region, .. } => self.set(region, State::Disabled),
            Op::Enable { region, .. } => self.set(region, State::Enabled),
            Op::Reset { region, at, byte, .. } => {
                let Some((id, model)) = self.region(region) else { return };
                let offset = at.offset(model.page);
                self.reset(id, offset, byte);
            }
            Op::Store { mapping, via, width, at, value } => {
                let bytes = value.to_le_bytes();
                self.store(mapping, at.offset(self.page(mapping)), &bytes[..width], reach(via));
            }
            Op::Modify { mapping, modify, width, at, value } => {
                let Answer::Bytes(found) = answer else { return };
                let mut old = [0; 8];
                old[..width].copy_from_slice(found);
                let old = u64::from_le_bytes(old);
                let new = match modify {
                    Modify::Swap | Modify::Exchange(_) => value,
                    Modify::Add => old.wrapping_add(value),
                    Modify::Or => old | value,
                    Modify::And => old & value,
                    Modify::Xor => old ^ value,
                };
                self.store(mapping, at.offset(self.page(mapping)), &new.to_le_bytes()[..width], reach(Via::Accessor));
            }
            Op::CopyIn { mapping, at, len, byte } | Op::Fill { mapping, at, len, byte } => {
                self.store(mapping, at.offset(self.page(mapping)), &vec![byte; len], reach(Via::Accessor));
            }
            Op::Call { mapping, call: Call::Read(byte), at, len } => {
                self.store(mapping, at.offset(self.page(mapping)), &vec![byte; len], Reach::Whatever);
            }
            Op::OwnerFill { region, at, len, byte } => {
                let Some((id, model)) = self.region(region) else { return };
                let offset = at.offset(model.page);
                self.regions[id].bytes[offset..offset + len].fill(byte);
            }
            Op::Pin { pin, region, polite, .. } => {
                let Some((region, _)) = self.region(region) else { return };
                let before = self.pins[pin].replace(PinModel { region, polite });
                self.settle(before.map(|pin| pin.region));
            }
            Op::Unpin { pin } => {
                let before = self.pins[pin].take();
                self.settle(before.map(|pin| pin.region));
            }
            Op::Guard { mapping } => {
                let Some(region) = self.mappings[mapping].as_ref().map(|mapping| mapping.region) else { return };
                self.guards.push(region);
                self.regions[region].guards += 1;
            }
            Op::Unguard => {
                let Some(region) = self.guards.pop() else { return };
                self.regions[region].guards -= 1;
                self.settle(Some(region));
            }
            Op::Group { group, members } => {
                let member = |slot: usize| self.slots[slot].filter(|_| members >> slot & 1 == 1);
                self.groups[group] = Some((0..self.slots.len()).filter_map(member).collect());
            }
            Op::All { group, verb } => {
                for id in self.groups[group].clone().unwrap_or_default() {
                    match verb {
                        Verb::Disable => self.become_state(id, State::Disabled),
                        Verb::Enable => self.become_state(id, State::Enabled),
                        Verb::Reset => self.reset(id, 0, 0xe5),
                    }
                }
            }
            Op::Wait { mapping, what, .. } => {
                let Some(region) = self.mappings[mapping].as_ref().map(|mapping| mapping.region) else { return };
                self.waiting.push((region, matches!(what, Waiter::Store(_))));
            }
            Op::Load { .. }
            | Op::CopyOut { .. }
            | Op::Call { .. }
            | Op::Shed { .. }
            | Op::OwnerRead { .. }
            | Op::FaultRegion { .. }
            | Op::FaultMapping { .. } => {}
        }
    }

    /// A waiting thread has stored.
    pub(crate) fn stored(&mut self, region: usize, offset: usize, value: u64) {
        self.regions[region].bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Polite holders of pins drop them when they are told of a revocation, whether or not it succeeds.
    fn tell_pins(&mut self, op: &Op) {
        let (Op::Disable { region, how } | Op::Reset { region, how, .. }) = *op else { return };
        let Some((id, model)) = self.region(region) else { return };
        if how != How::Try && model.state == State::Enabled && model.guards == 0 {
            self.drop_polite(id);
        }
    }

    fn drop_polite(&mut self, region: usize) {
        for pin in &mut self.pins {
            pin.take_if(|pin| pin.polite && pin.region == region);
        }
    }

    fn page(&self, mapping: usize) -> usize {
        self.mapping(mapping).map_or(1, |(_, region)| region.page)
    }

    fn set(&mut self, slot: usize, state: State) {
        if let Some(id) = self.slots[slot] {
            self.become_state(id, state);
        }
    }

    fn become_state(&mut self, id: usize, state: State) {
        let was = std::mem::replace(&mut self.regions[id].state, state);
        if was == State::Disabled && state == State::Enabled {
            // The cover is gone, with every store to it.
            for mapping in self.mappings.iter_mut().flatten().filter(|mapping| mapping.region == id) {
                mapping.ghost.clear();
            }
        }
        if was != state {
            self.replace(id, was, state);
        }
    }

    /// Each mapping of the region is replaced as a whole, whatever the application has done in its range.
    fn replace(&mut self, id: usize, was: State, now: State) {
        let limited = self.limit.is_some();
        let region = &mut self.regions[id];
        for mapping in self.mappings.iter_mut().flatten().filter(|mapping| mapping.region == id) {
            let waits = mapping.policy == OnDisabled::Block && !mapping.accessors_only;
            // A cover that refuses stays.
            if (was, now) == (State::Disabled, State::Gone) && (!waits || mapping.blurred) {
                continue;
            }
            if was != State::Disabled && mapping.has(There::Hole) {
                region.degraded = region.degraded.map(|times| times + 1);
            }
            if limited || mapping.blurred || self.unserved && region.strategy == Strategy::Zap {
                region.degraded = None;
            }
            mapping.blurred = limited;
            // A foreign mapping in the place of a whole mapping is one mapping as well. (Over several pages there are
            // several.)
            let foreign = mapping.has(There::Foreign) && mapping.pages.len() == 1;
            if was != State::Disabled && foreign && region.strategy == Strategy::Detach {
                mapping.mistaken = true;
            }
            let most = mapping.most();
            for page in &mut mapping.pages {
                // A stand-in has all the rights.
                page.now = if waits && now == State::Disabled { most } else { page.told };
                page.there = There::Own;
            }
            if mapping.mistaken && now == State::Enabled {
                // Unless the crate has filled the hole before.
                (mapping.mistaken, mapping.blurred) = (false, true);
                mapping.pages[0].there = There::Foreign;
            } else if !mapping.mistaken {
                mapping.foreign.clear();
            }
        }
    }

    /// A change that ended in the middle.
    fn failed(&mut self, op: &Op, ran: bool, enabled: usize) {
        let members = match *op {
            Op::All { group, .. } => self.groups[group].clone().unwrap_or_default(),
            Op::Disable { region, .. } | Op::Enable { region, .. } | Op::Reset { region, .. } => {
                self.slots[region].into_iter().collect()
            }
            _ => return,
        };
        for id in members {
            let bit = self.slots.iter().position(|slot| *slot == Some(id)).map_or(0, |slot| 1 << slot);
            match *op {
                Op::Reset { at, byte, .. } if ran => self.reset_bytes(id, at.offset(self.regions[id].page), byte),
                Op::All { .. } if ran => self.reset_bytes(id, 0, 0xe5),
                _ => {}
            }
            self.regions[id].degraded = None;
            self.become_state(id, if enabled & bit == 0 { State::Disabled } else { State::Enabled });
            for mapping in self.mappings.iter_mut().flatten().filter(|mapping| mapping.region == id) {
                mapping.blurred = true;
            }
        }
    }

    fn reset(&mut self, id: usize, offset: usize, byte: u8) {
        self.reset_bytes(id, offset, byte);
        if self.regions[id].state == State::Enabled {
            self.replace(id, State::Enabled, State::Enabled);
        }
    }

    /// A reset's callback fills a few bytes of a page by the owner's view.
    fn reset_bytes(&mut self, id: usize, offset: usize, byte: u8) {
        let end = self.regions[id].bytes.len().min(offset + super::run::RESET_FILLS);
        self.regions[id].bytes[offset..end].fill(byte);
    }

    fn drop_region(&mut self, slot: usize) {
        if let Some(id) = self.slots[slot].take() {
            // Only an enabled region has guards and pins.
            if self.regions[id].state == State::Disabled {
                self.become_state(id, State::Gone);
            } else {
                self.regions[id].state = State::Ending;
                self.settle(Some(id));
            }
        }
    }

    /// A region that was dropped is gone with its last guard and pin.
    fn settle(&mut self, region: Option<usize>) {
        let Some(id) = region else { return };
        if self.regions[id].state == State::Ending && self.regions[id].guards == 0 {
            self.drop_polite(id);
            if self.pins(id).0 == 0 {
                self.become_state(id, State::Gone);
            }
        }
    }
}
