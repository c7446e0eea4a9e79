//! What operations change in the model.

use super::model::{Answer, MappingModel, Meets, Model, PinModel, RegionModel, State};
use super::op::{Call, How, Modify, Op, Rights, Verb, Via, Waiter};
use std::collections::BTreeMap;

impl Model {
    /// Takes note of what an operation answered.
    pub(crate) fn apply(&mut self, op: &Op, answer: &Answer) {
        self.tell_pins(op);
        let done = matches!(answer, Answer::Done | Answer::Changed(true) | Answer::Bytes(_));
        if !done {
            return;
        }
        match *op {
            Op::Region { region, build } => {
                self.drop_region(region);
                let page = if build.memory == super::op::Memory::Huge { 2 << 20 } else { 4096 };
                self.slots[region] = Some(self.regions.len());
                self.regions.push(RegionModel {
                    page,
                    strategy: build.strategy,
                    memory: build.memory,
                    state: if build.disabled { State::Disabled } else { State::Enabled },
                    bytes: vec![0; build.pages * page],
                    guards: 0,
                });
            }
            Op::DropRegion { region } => self.drop_region(region),
            Op::Map { mapping, region, how } => {
                let Some((id, model)) = self.region(region) else { return };
                let Ok((offset, len)) = self.part(model, how) else { return };
                let rights = if how.read_only { Rights::Loads } else { Rights::All };
                let rights = vec![rights; len / model.page];
                let own = how.accessors_only && model.strategy == revocable_mmio::Strategy::Zap;
                self.mappings[mapping] = Some(MappingModel {
                    region: id,
                    offset,
                    len,
                    read_only: how.read_only,
                    policy: how.policy,
                    own,
                    ghost: BTreeMap::new(),
                    rights,
                });
            }
            Op::Protect { mapping, page, rights } => {
                let Some(mapping) = &mut self.mappings[mapping] else { return };
                mapping.rights[page] = mapping.rights[page].min(rights);
            }
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
                self.store(mapping, at.offset(self.page(mapping)), &bytes[..width], leaves_a_ghost(via));
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
                self.store(mapping, at.offset(self.page(mapping)), &new.to_le_bytes()[..width], false);
            }
            Op::CopyIn { mapping, at, len, byte } | Op::Fill { mapping, at, len, byte } => {
                self.store(mapping, at.offset(self.page(mapping)), &vec![byte; len], true);
            }
            Op::Call { mapping, call: Call::Read(byte), at, len } => {
                self.store(mapping, at.offset(self.page(mapping)), &vec![byte; len], true);
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

    /// A thread that waited has stored.
    pub(crate) fn stored(&mut self, region: usize, offset: usize, value: u64) {
        self.regions[region].bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Holders of pins that are told of a revocation give them back, whatever becomes of it.
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
        if std::mem::replace(&mut self.regions[id].state, state) == State::Disabled && state == State::Enabled {
            // What was there instead of the memory is gone with all that was stored in it.
            for mapping in self.mappings.iter_mut().flatten().filter(|mapping| mapping.region == id) {
                mapping.ghost.clear();
            }
        }
    }

    /// A reset's callback fills a few bytes of a page by the owner's view.
    fn reset(&mut self, id: usize, offset: usize, byte: u8) {
        let end = self.regions[id].bytes.len().min(offset + super::run::RESET_FILLS);
        self.regions[id].bytes[offset..end].fill(byte);
    }

    fn store(&mut self, slot: usize, offset: usize, bytes: &[u8], reaches_the_cover: bool) {
        let Some(meets) = self.mapping(slot).map(|(mapping, _)| self.meets(mapping)) else { return };
        let Some(mapping) = &mut self.mappings[slot] else { return };
        match meets {
            Meets::Memory => {
                let start = mapping.offset + offset;
                self.regions[mapping.region].bytes[start..start + bytes.len()].copy_from_slice(bytes);
            }
            Meets::Ones if reaches_the_cover => {
                mapping.ghost.extend((offset..).zip(bytes.iter().copied()));
            }
            Meets::Ones | Meets::Disabled | Meets::Gone | Meets::Waits => {}
        }
    }

    fn drop_region(&mut self, slot: usize) {
        if let Some(id) = self.slots[slot].take() {
            self.regions[id].state = State::Ending;
            self.settle(Some(id));
        }
    }

    /// A region that was dropped is gone with its last guard and pin.
    fn settle(&mut self, region: Option<usize>) {
        let Some(id) = region else { return };
        if self.regions[id].state == State::Ending && self.regions[id].guards == 0 {
            self.drop_polite(id);
            if self.pins(id).0 == 0 {
                self.regions[id].state = State::Gone;
            }
        }
    }
}

fn leaves_a_ghost(via: Via) -> bool {
    matches!(via, Via::Raw | Via::Register)
}
