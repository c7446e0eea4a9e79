//! Random histories of a device against a small model: configuration writes of any width and offset, resets, power
//! states, accesses by call and by mapping, mapping and unmapping, size probes and moves.

mod described;
mod places;

use crate::support;
use places::{Followed, Places};
use proptest::prelude::*;
use revocable_mmio::pci::{Bar, DeviceState, PciDevice, Space};
use revocable_mmio::{AccessError, MapOptions, Mapping};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const BAR0_SIZE: usize = 8192;
const BAR2_SIZE: usize = 64 << 10;
const PM: usize = 0x40;
const PMCSR: usize = PM + 4;
const EXPRESS: usize = 0x50;
const DEVCTL: usize = EXPRESS + 8;

#[derive(Clone, Debug)]
enum Op {
    Config {
        at: usize,
        bytes: Vec<u8>,
    },
    Command(u16),
    Power(u8),
    /// A write to a BAR's register, or to its second half: an address, or ones.
    Register {
        at: usize,
        value: u32,
        width: usize,
    },
    Flr,
    /// The device goes on as another, by its state and content.
    Migrate,
    Reset,
    EnterLowPower,
    ExitLowPower,
    Read {
        bar: usize,
        at: usize,
        len: usize,
    },
    Write {
        bar: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Map {
        bar: usize,
        page: usize,
    },
    Unmap(usize),
    Load {
        mapping: usize,
        at: usize,
    },
    Store {
        mapping: usize,
        at: usize,
        value: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bar = prop_oneof![Just(0usize), Just(2)];
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let values = prop_oneof![
        2 => prop::sample::select(vec![u32::MAX, 0xffff_fff0, 0xffff_fff4]),
        4 => prop::sample::select(vec![0u32, 1, 2, 0xe000_0000, 0xe800_0004, 0xffff_0004]),
        1 => any::<u32>(),
    ];
    let op = prop_oneof![
        3 => (0usize..264, bytes(12)).prop_map(|(at, bytes)| Op::Config { at, bytes }),
        4 => any::<u16>().prop_map(Op::Command),
        2 => (0u8..4).prop_map(Op::Power),
        6 => (prop::sample::select(vec![0x10usize, 0x18, 0x1c]), values, prop_oneof![5 => Just(4usize), 1 => Just(2), 1 => Just(1)])
            .prop_map(|(at, value, width)| Op::Register { at, value, width }),
        1 => Just(Op::Flr),
        2 => Just(Op::Migrate),
        1 => Just(Op::Reset),
        1 => Just(Op::EnterLowPower),
        1 => Just(Op::ExitLowPower),
        3 => (bar.clone(), 0usize..BAR2_SIZE + 16, 0usize..40).prop_map(|(bar, at, len)| Op::Read { bar, at, len }),
        3 => (bar.clone(), 0usize..BAR2_SIZE + 16, bytes(40)).prop_map(|(bar, at, bytes)| Op::Write { bar, at, bytes }),
        2 => (bar, 0usize..4).prop_map(|(bar, page)| Op::Map { bar, page }),
        1 => (0usize..8).prop_map(Op::Unmap),
        3 => (0usize..8, 0usize..4096 / 8).prop_map(|(mapping, at)| Op::Load { mapping, at: 8 * at }),
        3 => (0usize..8, 0usize..4096 / 8, any::<u64>())
            .prop_map(|(mapping, at, value)| Op::Store { mapping, at: 8 * at, value }),
    ];
    prop::collection::vec(op, 1..60)
}

/// The expected device: bytes of configuration with their writable bits, memory, and two states.
struct Model {
    config: Vec<u8>,
    mask: Vec<u8>,
    memory: [Vec<u8>; 2],
    low_power: bool,
    resets: usize,
    places: Places,
}

impl Model {
    fn new(config: Vec<u8>) -> Self {
        let mut mask = vec![0; 256];
        mask[4..6].copy_from_slice(&0x0507u16.to_le_bytes());
        mask[0xc..0xe].fill(0xff);
        mask[0x10..0x14].copy_from_slice(&(!(BAR0_SIZE - 1)).to_le_bytes()[..4]);
        mask[0x18..0x1c].copy_from_slice(&(!(BAR2_SIZE - 1)).to_le_bytes()[..4]);
        mask[0x1c..0x20].fill(0xff);
        mask[0x3c] = 0xff;
        mask[DEVCTL..DEVCTL + 2].copy_from_slice(&0x7dffu16.to_le_bytes());
        Self {
            config,
            mask,
            memory: [vec![0; BAR0_SIZE], vec![0; BAR2_SIZE]],
            low_power: false,
            resets: 0,
            places: Places::default(),
        }
    }

    fn power(&self) -> u8 {
        self.config[PMCSR] & 3
    }

    fn decodes(&self) -> bool {
        self.config[4] & 2 != 0 && self.power() < 3
    }

    fn mapped(&self) -> bool {
        self.decodes() && !self.low_power
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.config[PMCSR] &= !3;
        self.follow();
    }

    /// In aligned pieces of 4, 2 or 1 bytes, as the device takes them apart; a piece has its effect before the next.
    fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at + bytes.len() > 256 {
            return bytes.is_empty();
        }
        let mut rest = bytes;
        let mut at = at;
        while !rest.is_empty() {
            let len = [4, 2, 1].into_iter().find(|len| at % len == 0 && rest.len() >= *len).unwrap_or(1);
            self.write_piece(at, &rest[..len]);
            (at, rest) = (at + len, &rest[len..]);
        }
        true
    }

    fn write_piece(&mut self, start: usize, bytes: &[u8]) {
        self.places.written(start, bytes);
        for (at, new) in (start..).zip(bytes) {
            let mask = self.mask[at];
            self.config[at] = self.config[at] & !mask | new & mask;
            match at {
                // The device has no D1 and D2.
                PMCSR if matches!(new & 3, 0 | 3) => self.config[at] = self.config[at] & !3 | new & 3,
                _ if at == DEVCTL + 1 && new & 0x80 != 0 => self.reset(),
                _ => {}
            }
        }
        self.follow();
    }

    fn follow(&mut self) {
        let low = u32::from_le_bytes(self.config[0x10..0x14].try_into().expect("a register")) & !0xf;
        let wide = u64::from_le_bytes(self.config[0x18..0x20].try_into().expect("a register")) & !0xf;
        self.places.follow(self.decodes(), [u64::from(low), wide]);
    }

    fn memory(&mut self, bar: usize) -> &mut Vec<u8> {
        &mut self.memory[bar / 2]
    }

    /// The result of a transfer by call: the number of bytes, or an errno.
    fn transfer(&mut self, bar: usize, at: usize, len: usize) -> Result<usize, i32> {
        const EIO: i32 = 5;
        const EINVAL: i32 = 22;
        match self.memory(bar).len() {
            _ if len == 0 => Ok(0),
            size if at >= size => Err(EINVAL),
            _ if !self.decodes() => Err(EIO),
            size => Ok(len.min(size - at)),
        }
    }
}

struct Mapped {
    mapping: Mapping,
    bar: usize,
    offset: usize,
}

fn build(resets: &Arc<AtomicUsize>) -> PciDevice {
    let resets = Arc::clone(resets);
    PciDevice::builder(0x1234, 0x5678)
        .bar(0, Bar::memory(BAR0_SIZE as u64))
        .bar(2, Bar::memory(BAR2_SIZE as u64).wide().prefetchable())
        .power(PM)
        .express(EXPRESS)
        .on_reset(move |_, _| {
            resets.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .build()
        .expect("a device")
}

fn dump(device: &PciDevice) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    device.read(Space::Config, 0, &mut bytes[..]).expect("configuration space");
    bytes
}

fn replay(history: &[Op]) -> Result<(), TestCaseError> {
    let resets = Arc::new(AtomicUsize::new(0));
    let mut device = build(&resets);
    let mut model = Model::new(dump(&device));
    let mut followed = Arc::new(Followed::default());
    let mut following = device.follow(Arc::clone(&followed) as _).expect("nothing is decoded");
    let mut mappings: Vec<Mapped> = Vec::new();
    for op in history {
        match op.clone() {
            Op::Config { at, bytes } => {
                let fits = model.write(at, &bytes);
                let written = device.write(Space::Config, at as u64, &bytes[..]);
                prop_assert_eq!(written.map_err(|e| e.errno()), if fits { Ok(bytes.len()) } else { Err(14) });
            }
            Op::Command(command) => {
                model.write(4, &command.to_le_bytes());
                device.write(Space::Config, 4, &command.to_le_bytes()[..]).expect("COMMAND");
            }
            Op::Power(state) => {
                model.write(PMCSR, &[state]);
                device.write(Space::Config, PMCSR as u64, &[state][..]).expect("PMCSR");
            }
            Op::Register { at, value, width } => {
                for (at, bytes) in (at..).step_by(width).zip(value.to_le_bytes().chunks(width)) {
                    model.write(at, bytes);
                    device.write(Space::Config, at as u64, bytes).expect("a register");
                }
            }
            Op::Flr => {
                let control = [model.config[DEVCTL], 0x80];
                model.write(DEVCTL, &control);
                device.write(Space::Config, DEVCTL as u64, &control[..]).expect("DEVCTL");
            }
            Op::Migrate => {
                let state = device.save().to_bytes();
                let next = build(&resets);
                for bar in [0, 2].map(Space::Bar) {
                    let mut content = vec![0; usize::try_from(device.info(bar).size).expect("small")];
                    device.owner(bar).expect("memory").read_slice(0, &mut content).expect("the owner's view");
                    next.owner(bar).expect("memory").write_slice(0, &content).expect("the owner's view");
                }
                let there = Arc::new(Followed::default());
                following = next.follow(Arc::clone(&there) as _).expect("nothing is decoded");
                followed = Arc::clone(&there);
                let state = DeviceState::from_bytes(&state).map_err(|e| TestCaseError::fail(e.to_string()))?;
                next.restore(&state).map_err(|e| TestCaseError::fail(e.to_string()))?;
                model.places.migrate();
                for mapped in &mut mappings {
                    let options = MapOptions::new().offset(mapped.offset).len(support::page_size());
                    mapped.mapping = next.map(Space::Bar(mapped.bar), options).expect("it maps");
                }
                prop_assert_eq!(next.save(), device.save());
                device = next;
            }
            Op::Reset => {
                model.reset();
                device.reset().expect("a reset");
            }
            Op::EnterLowPower => {
                let entered = device.enter_low_power().map_err(|e| e.errno());
                prop_assert_eq!(entered, if model.low_power { Err(22) } else { Ok(()) });
                model.low_power = true;
            }
            Op::ExitLowPower => {
                device.exit_low_power().expect("out of low power");
                model.low_power = false;
            }
            Op::Read { bar, at, len } => {
                let mut bytes = vec![0; len];
                let read = device.read(Space::Bar(bar), at as u64, &mut bytes[..]).map_err(|e| e.errno());
                prop_assert_eq!(read, model.transfer(bar, at, len));
                if let Ok(count @ 1..) = read {
                    prop_assert_eq!(&bytes[..count], &model.memory(bar)[at..][..count]);
                }
            }
            Op::Write { bar, at, bytes } => {
                let written = device.write(Space::Bar(bar), at as u64, &bytes[..]).map_err(|e| e.errno());
                prop_assert_eq!(written, model.transfer(bar, at, bytes.len()));
                if let Ok(count @ 1..) = written {
                    model.memory(bar)[at..at + count].copy_from_slice(&bytes[..count]);
                }
            }
            Op::Map { bar, page } => {
                let (size, one) = (model.memory(bar).len(), support::page_size());
                // The smaller BAR may be less than a page.
                let offset = one * page;
                let mapped = device.map(Space::Bar(bar), MapOptions::new().offset(offset).len(one));
                prop_assert!(size < one || mapped.is_ok() == (offset < size));
                let mapped = mapped.map(|mapping| Mapped { mapping, bar, offset });
                mappings.extend(mapped.ok().filter(|_| mappings.len() < 8));
            }
            Op::Unmap(index) => {
                if index < mappings.len() {
                    mappings.swap_remove(index);
                }
            }
            Op::Load { mapping, at } => {
                if let Some(Mapped { mapping, bar, offset }) = mappings.get(mapping) {
                    let place = offset + at;
                    let value = model.memory(*bar)[place..place + 8].try_into().map(u64::from_le_bytes);
                    let expected = if model.mapped() { value.ok() } else { None };
                    prop_assert_eq!(answer(mapping.read::<u64>(at))?, expected);
                }
            }
            Op::Store { mapping, at, value } => {
                if let Some(Mapped { mapping, bar, offset }) = mappings.get(mapping) {
                    let stored = answer(mapping.write(at, value))?;
                    prop_assert_eq!(stored.is_some(), model.mapped());
                    if stored.is_some() {
                        let place = offset + at;
                        model.memory(*bar)[place..place + 8].copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
        }
        prop_assert_eq!(&dump(&device), &model.config, "after {:?}", op);
        prop_assert_eq!(followed.told(), model.places.told(), "after {:?}", op);
        for (bar, place) in [0, 2].into_iter().zip(model.places.now()) {
            prop_assert_eq!(device.place(Space::Bar(bar)).map(|place| place.address), place, "after {:?}", op);
        }
        prop_assert_eq!(device.is_memory_enabled(), model.mapped(), "after {:?}", op);
        prop_assert_eq!(resets.load(Ordering::Relaxed), model.resets, "after {:?}", op);
        // Together or not at all: every mapping has the same state, whichever BAR it maps.
        for mapped in &mappings {
            prop_assert_eq!(answer(mapped.mapping.read::<u8>(0))?.is_some(), model.mapped(), "after {:?}", op);
        }
    }
    drop(following);
    // Nothing is lost: the owner's view has all of the content, in every state.
    for (bar, memory) in [(0, &model.memory[0]), (2, &model.memory[1])] {
        let mut content = vec![0; memory.len()];
        device.owner(Space::Bar(bar)).expect("memory").read_slice(0, &mut content).expect("the owner's view");
        prop_assert!(content == *memory, "content of BAR {}", bar);
    }
    Ok(())
}

/// `None`: refused because the device's memory is disabled.
fn answer<T>(result: Result<T, AccessError>) -> Result<Option<T>, TestCaseError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(AccessError::Disabled { .. }) => Ok(None),
        Err(e) => Err(TestCaseError::fail(e.to_string())),
    }
}

#[test]
fn a_device_does_what_its_model_does() {
    support::start();
    let show = |history: &Vec<Op>| format!("{history:#?}\n");
    support::fuzz::check(regressions!("pci"), 192, &ops(), show, |history| replay(&history).map_err(|e| e.to_string()));
}
