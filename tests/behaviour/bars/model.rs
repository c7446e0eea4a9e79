//! Random sequences of verbs against a model: an array of bytes, and a list of areas.

use super::PAGE;
use crate::support;
use proptest::prelude::*;
use revocable_mmio::bar::{Area, Bar};
use revocable_mmio::memslot::{Memslots, Retention};
use revocable_mmio::{AccessError, Region};
use std::sync::Arc;

const PAGES: u64 = 16;

#[derive(Clone, Debug)]
enum Op {
    Insert { page: u64, pages: u64 },
    Remove(usize),
    Set(bool),
    Reset(u8),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    MoveTo(Option<u64>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..PAGES + 2, 1..6_u64).prop_map(|(page, pages)| Op::Insert { page, pages }),
        2 => any::<usize>().prop_map(Op::Remove),
        2 => any::<bool>().prop_map(Op::Set),
        1 => any::<u8>().prop_map(Op::Reset),
        4 => (0..PAGES * PAGE, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Op::Write(at, bytes)),
        4 => (0..PAGES * PAGE, 1..64_usize).prop_map(|(at, len)| Op::Read(at, len)),
        2 => prop::option::of((1..8_u64).prop_map(|i| i * PAGES * PAGE)).prop_map(Op::MoveTo),
    ]
}

/// What a BAR is: bytes where areas are, `None` elsewhere.
struct Model {
    bytes: Vec<Option<u8>>,
    enabled: bool,
    base: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bar_does_what_a_list_of_areas_does(ops in prop::collection::vec(op(), 1..40)) {
        support::start();
        let map = Arc::new(support::memory_map::Map::default());
        let slots = Memslots::new(Arc::clone(&map));
        let bar = Bar::builder(PAGES * PAGE).memslots(&slots, 0..64, Retention::AllOnes).build().expect("a BAR");
        let mut model = Model { bytes: vec![None; usize::try_from(PAGES * PAGE).expect("small")], enabled: true, base: None };
        let mut held: Vec<Area> = Vec::new();
        for op in ops {
            match op {
                Op::Insert { page, pages } => {
                    let range = page * PAGE..(page + pages) * PAGE;
                    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).expect("small"));
                    let fits = end <= model.bytes.len() && model.bytes[start..end].iter().all(Option::is_none);
                    let made = bar.areas().insert(range.start, Region::builder(end - start));
                    prop_assert_eq!(made.is_ok(), fits, "{:?}", made);
                    if let Ok(area) = made {
                        model.bytes[start..end].fill(Some(0));
                        held.push(area);
                    }
                }
                Op::Remove(which) if !held.is_empty() => {
                    let at = which % held.len();
                    let area = held.swap_remove(at);
                    let [start, end] = [area.range().start, area.range().end].map(|at| usize::try_from(at).expect("small"));
                    model.bytes[start..end].fill(None);
                }
                Op::Remove(_) => {}
                Op::Set(on) => {
                    let changed = if on { bar.enable() } else { bar.disable() };
                    prop_assert_eq!(changed.expect("nothing is in the way"), on != model.enabled);
                    model.enabled = on;
                }
                Op::Reset(with) => {
                    bar.reset(|memories| memories.iter().for_each(|(_, memory)| {
                        memory.fill(0, with, memory.len()).expect("it is memory");
                    })).expect("nothing is in the way");
                    model.bytes.iter_mut().flatten().for_each(|byte| *byte = with);
                }
                Op::Write(at, bytes) => {
                    let from = usize::try_from(at).expect("small");
                    let inside = from + bytes.len() <= model.bytes.len();
                    let made = bar.areas().write(at, &bytes);
                    match (inside, model.enabled) {
                        (false, _) => prop_assert!(matches!(made, Err(AccessError::OutOfBounds { .. })), "{:?}", made),
                        (true, false) => prop_assert_eq!(made, Err(AccessError::Disabled { offset: from })),
                        (true, true) => {
                            prop_assert_eq!(made, Ok(()));
                            let here = &mut model.bytes[from..from + bytes.len()];
                            here.iter_mut().zip(&bytes).for_each(|(here, byte)| *here = here.map(|_| *byte));
                        }
                    }
                }
                Op::Read(at, len) => {
                    let from = usize::try_from(at).expect("small");
                    let mut bytes = vec![0; len];
                    let made = bar.areas().read(at, &mut bytes);
                    match (from + len <= model.bytes.len(), model.enabled) {
                        (false, _) => prop_assert!(matches!(made, Err(AccessError::OutOfBounds { .. })), "{:?}", made),
                        (true, false) => prop_assert_eq!(made, Err(AccessError::Disabled { offset: from })),
                        (true, true) => {
                            let expected: Vec<_> = model.bytes[from..from + len].iter().map(|byte| byte.unwrap_or(0xff)).collect();
                            prop_assert_eq!(bytes, expected);
                        }
                    }
                }
                Op::MoveTo(base) => {
                    bar.areas().move_to(base).expect("nothing else is there");
                    model.base = base;
                }
            }
            let mut places = map.places();
            places.sort_unstable();
            let mut expected: Vec<_> = held.iter().filter_map(|area| model.base.map(|base| base + area.range().start)).collect();
            expected.sort_unstable();
            prop_assert_eq!(places, expected);
            prop_assert!(held.iter().all(|area| area.region().is_enabled() == model.enabled));
        }
    }
}
