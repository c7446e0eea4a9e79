//! A guest's writes change what can be written and nothing else, a function decodes what its registers say, and a state that
//! is read back is a state. No memory and no device: this runs under Miri.

use super::*;
use crate::pci::decode::MemoryStep;
use proptest::prelude::*;

const SIZE: usize = 256;
const POWER: usize = 0x40;

/// All kinds of BARs, a ROM, and power states.
fn function() -> ConfigSpace {
    let mut config = ConfigSpace::new(SIZE);
    config.set_bar(0, 0x1000, 0, 0xe000_0000);
    config.set_bar(1, 1 << 33, BAR_64, 0);
    config.set_bar(3, 0x20, BAR_IO, 0);
    config.set_rom(0x800);
    config.power = Some(POWER);
    config.set(POWER + PM_PMC, &(PMC_VERSION | PMC_D1).to_le_bytes());
    config.read_bars();
    config
}

/// Writes in pieces, as a device does, and follows each.
fn write(config: &mut ConfigSpace, at: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let (at, piece) = (at + done, piece(at + done, bytes.len() - done));
        write_piece(config, at, &bytes[done..done + piece]);
        done += piece;
    }
}

fn write_piece(config: &mut ConfigSpace, at: usize, bytes: &[u8]) {
    let before = config.clone();
    let foreseen = config.steps_of_bars(at, bytes, None);
    config.write(at, bytes);
    for register in 0..SIZE {
        let changed = before.bytes[register] ^ config.bytes[register];
        let own = if register == POWER + PM_CTRL { PM_CTRL_STATE } else { 0 };
        assert_eq!(changed & !(config.writable[register] | own), 0, "{register:#x} changed beyond what can be written");
        assert!(changed == 0 || covers(at, bytes.len(), register), "{register:#x} changed, and was not written");
    }
    let registers = config.decode(None);
    let steps = config.decoded.steps(&registers);
    if touches_bars(at, bytes.len()) {
        assert_eq!(steps, foreseen, "what a write to BARs was to do");
    }
    let on = registers.power_state < D3HOT && registers.command & COMMAND_MEMORY != 0;
    let was_on = config.decoded.decodes_memory();
    let due = match (was_on, on) {
        (true, false) => MemoryStep::Revoke,
        (false, true) => MemoryStep::Restore,
        _ => MemoryStep::Stay,
    };
    assert_eq!((steps.memory, steps.decodes_memory()), (due, on));
    let old: Vec<_> = config.decoded.places().collect();
    assert!(steps.leave().all(|place| old.contains(&place)), "it left a place where it was not");
    config.decoded.take(&steps);
    for place in config.decoded.places() {
        assert!(place.size.is_power_of_two() && place.address % place.size == 0, "{place}");
        assert!(!place.kind.is_memory() || on, "{place}, with memory off");
        assert!(old.contains(&place) || steps.enter().any(|entered| entered == place), "{place} was never entered");
    }
    assert!(config.decoded.steps(&registers).is_nothing(), "the same registers twice");
    let mut undone = config.aside();
    undone.undo(&before, config);
    assert_eq!((&undone.bytes, undone.bars), (&before.bytes, before.bars), "a write that is taken back");
}

fn saved(config: &ConfigSpace) -> DeviceState {
    let (bytes, bars) = config.save();
    DeviceState { low_power: false, failed: false, config: bytes, bars, begun: vec![(4, vec![0, 0])] }
}

/// Where writes go, and what they are: anything, and what guests do.
fn writes() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let anywhere = (0..SIZE, prop::collection::vec(any::<u8>(), 1..9));
    let word = prop_oneof![Just(u32::MAX), Just(0_u32), Just(0xe000_0001), Just(0xffff_f004), any::<u32>()];
    let bar = (0..7_usize, word).prop_map(|(slot, word)| (bar_at(slot).start, word.to_le_bytes().to_vec()));
    let command = any::<u8>().prop_map(|bits| (COMMAND, vec![bits, 0]));
    let power = any::<u8>().prop_map(|bits| (POWER + PM_CTRL, vec![bits]));
    let write = prop_oneof![1 => anywhere, 4 => bar, 2 => command, 1 => power];
    let inside = |(at, mut bytes): (usize, Vec<u8>)| {
        bytes.truncate(SIZE - at);
        (at, bytes)
    };
    prop::collection::vec(write.prop_map(inside), 1..if cfg!(miri) { 5 } else { 40 })
}

const CASES: u32 = if cfg!(miri) { 2 } else { 1000 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_function_decodes_what_its_registers_say_whatever_is_written_to_them(writes in writes()) {
        let mut config = function();
        for (at, bytes) in &writes {
            write(&mut config, *at, bytes);
        }
        let state = saved(&config);
        let read = DeviceState::from_bytes(&state.to_bytes());
        prop_assert_eq!(read.as_ref().ok(), Some(&state));
        let mut other = function();
        let settled = other.check(&state).expect("a state of the same function");
        other.load(&state, &settled);
        let steps = other.decoded.steps(&other.decode(None));
        other.decoded.take(&steps);
        prop_assert_eq!(&other.decoded, &config.decoded, "it decodes the same at the destination");
        other.load(&state, &[None; SLOTS]);
        prop_assert_eq!((other.bytes, other.bars), (config.bytes, config.bars));
    }

    /// A few bytes of a state are changed, or it is cut short.
    #[test]
    fn a_state_that_was_tampered_with_is_refused_or_is_another_state(
        writes in writes(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let mut config = function();
        for (at, bytes) in &writes {
            write(&mut config, *at, bytes);
        }
        let mut bytes = saved(&config).to_bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(state) = DeviceState::from_bytes(&bytes) {
            prop_assert_eq!(DeviceState::from_bytes(&state.to_bytes()).ok(), Some(state.clone()));
            if let Ok(settled) = config.check(&state) {
                config.load(&state, &settled);
                let steps = config.decoded.steps(&config.decode(None));
                prop_assert!(steps.enter().all(|place| place.address.checked_add(place.size - 1).is_some()));
            }
        }
    }
}
