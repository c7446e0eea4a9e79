//! Descriptions of devices: each gives a device, or an error that says what is wrong with it.

use super::BAR0_SIZE;
use crate::support;
use proptest::prelude::*;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use std::sync::Arc;

/// A number of the whole range, most often near an edge.
fn number() -> impl Strategy<Value = usize> {
    let edge =
        prop::sample::select(vec![0, 6, 0x40, 0x44, 0x50, 0x100, 256, 4096, BAR0_SIZE, 1 << 31, 1 << 32, usize::MAX]);
    prop_oneof![3 => (edge, -9isize..9).prop_map(|(edge, by): (usize, isize)| edge.wrapping_add_signed(by)), 1 => any::<usize>()]
}

#[derive(Clone, Debug)]
struct Described {
    index: usize,
    size: usize,
    wide: bool,
    excluded: Vec<(usize, usize)>,
    power: Option<usize>,
    express: Option<usize>,
    raw: Option<(usize, usize, usize)>,
    class: u32,
}

fn described() -> impl Strategy<Value = Described> {
    let size = prop_oneof![2 => (0u32..20).prop_map(|bits| 1usize << bits), 1 => number()];
    let excluded = prop::collection::vec((number(), number()), 0..4);
    let raw = prop::option::of((number(), 0usize..20, 0usize..20));
    let optional = || prop::option::of(number());
    (0usize..8, prop::bool::weighted(0.1), size, any::<bool>(), excluded, (optional(), optional()), raw, any::<u32>())
        .prop_map(|(index, far, size, wide, excluded, (power, express), raw, class)| Described {
            index: if far { usize::MAX - index } else { index },
            size,
            wide,
            excluded,
            power,
            express,
            raw,
            class: if class % 4 == 0 { class } else { class >> 8 },
        })
}

/// Any description either gives a device or an error that says what is wrong with it.
fn describe(is: &Described) -> Result<(), TestCaseError> {
    let mut bar = Bar::memory(is.size as u64);
    if is.wide {
        bar = bar.wide();
    }
    for (start, end) in &is.excluded {
        bar = bar.exclude(*start as u64..*end as u64);
    }
    let mut builder = PciDevice::builder(1, 2).command(2).class(is.class, 0).bar(is.index, bar);
    if let Some(at) = is.power {
        builder = builder.power(at);
    }
    if let Some(at) = is.express {
        builder = builder.express(at);
    }
    if let Some((at, bytes, writable)) = is.raw {
        builder = builder.config(at, &vec![0; bytes], &vec![0; writable]);
    }
    let fits = |at: usize, len: usize| at >= 0x40 && at % 4 == 0 && at.checked_add(len).is_some_and(|end| end <= 256);
    let last = is.index.checked_add(usize::from(is.wide));
    let good = last.is_some_and(|last| last < 6)
        && is.size.is_power_of_two()
        && is.size >= 16
        && (is.wide || is.size <= 1 << 31)
        && is.class >> 24 == 0
        && is.excluded.iter().all(|(start, end)| start <= end && *end <= is.size)
        && is.power.is_none_or(|at| fits(at, 8))
        && is.express.is_none_or(|at| fits(at, 0x3c))
        && is.power.zip(is.express).is_none_or(|(power, express)| power + 8 <= express || express + 0x3c <= power)
        && is.raw.is_none_or(|(at, bytes, writable)| at.checked_add(bytes.max(writable)).is_some_and(|end| end <= 256));
    let device = match builder.build() {
        Ok(device) => device,
        // Too large to be mapped.
        Err(e) if is.size > 1 << 31 => {
            prop_assert!(!e.to_string().is_empty());
            return Ok(());
        }
        Err(e) => {
            prop_assert!(!good, "{}", e);
            prop_assert!(!e.to_string().is_empty());
            return Ok(());
        }
    };
    prop_assert!(good, "accepted");
    // All excluded bytes read all-ones, and no others.
    let bar = Space::Bar(is.index);
    let is_excluded = |at: usize| is.excluded.iter().any(|(start, end)| (*start..*end).contains(&at));
    let edges = is.excluded.iter().flat_map(|(start, end)| [*start, *end]).chain([0, is.size - 1]);
    for at in edges.flat_map(|at| [at.wrapping_sub(1), at, at.wrapping_add(1)]).filter(|at| *at < is.size) {
        let mut byte = [0x55];
        prop_assert_eq!(device.read(bar, at as u64, &mut byte[..]).map_err(|e| e.errno()), Ok(1));
        prop_assert_eq!(byte[0] == 0xff, is_excluded(at), "at {:#x}", at);
    }
    Ok(())
}

#[test]
fn whatever_is_described_is_made_or_refused_with_a_reason() {
    support::start();
    let show = |is: &Described| format!("{is:#?}\n");
    support::fuzz::check(regressions!("pci_described"), 2000, &described(), show, |is| {
        describe(&is).map_err(|e| e.to_string())
    });
}

#[test]
fn ports_have_nothing_that_memory_has() {
    support::start();
    struct Nothing;
    impl revocable_mmio::pci::PortIo for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }
    let build = |bar| PciDevice::builder(1, 2).bar(0, bar).build().map_err(|e| e.errno());
    let ports = || Bar::io(16, Arc::new(Nothing));
    assert_eq!(build(ports().backing(revocable_mmio::Backing::Memfd)).map(drop), Err(22));
    assert_eq!(build(ports().exclude(0..4)).map(drop), Err(22));
    assert!(build(ports()).is_ok_and(|device| !device.info(Space::Bar(0)).map));
}
