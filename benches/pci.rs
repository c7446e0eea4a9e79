//! BAR accesses on a caller's behalf, beside the lock and the load that they need in any case. Hot resets of 1 to 64
//! functions, whose cost must grow with the number of functions only.

#[expect(dead_code, reason = "shared with benches that use all of it")]
mod support;

use parking_lot::RwLock;
use revocable_mmio::pci::{Bar, Bus, PciDevice, Space};
use revocable_mmio::{MapOptions, Mapping, Strategy};
use std::hint::black_box;
use std::time::{Duration, Instant};
use support::{Contest, Ratios, Samples, pick};

const BAR: Space = Space::Bar(0);
const STAMP: u64 = 0x5245_564f_4341_424c;
const TURN: Duration = Duration::from_micros(100);
const BAR_LEN: u64 = 64 << 10;

fn main() {
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    by_call(&mut samples);
    samples.table("BAR accesses on a caller's behalf");
    for (name, of, at_most) in [
        ("pci.bar_read_ns", "bar_read_8", Some(20.0)),
        ("pci.bar_write_ns", "bar_write_8", Some(20.0)),
        ("pci.bar_read_refused_ns", "bar_read_refused", None),
        ("pci.config_read_ns", "config_read_4", None),
    ] {
        ratios.add(name, samples.p50(of).unwrap_or(f64::NAN), at_most);
    }
    ratios.of(&samples, "pci.bar_read/lock_and_load", "bar_read_8", "lock_and_load", None);
    let mut resets = Samples::default();
    for strategy in [Strategy::Detach, Strategy::Zap, Strategy::Replace] {
        hot_reset(strategy, &mut resets, &mut ratios);
    }
    resets.table("hot reset of so many functions, each with a mapping of 64 KiB that is in use");
    ratios.print();
}

fn device(name: &str, strategy: Option<Strategy>) -> PciDevice {
    let builder = PciDevice::builder(0x1af4, 0x1110).name(name).command(2).bar(0, Bar::memory(BAR_LEN));
    let builder = if let Some(strategy) = strategy { builder.strategy(strategy) } else { builder };
    builder.build().expect("a device")
}

fn by_call(samples: &mut Samples) {
    let nic = device("nic", None);
    nic.owner(BAR).expect("memory").write(0, STAMP).expect("the owner's view");
    let off = device("off", None);
    off.write(Space::Config, 4, &[0u8, 0][..]).expect("COMMAND");
    let locked = RwLock::new(());
    let owner = nic.owner(BAR).expect("memory");

    let mut contest = Contest::new("pci", Duration::ZERO);
    contest.many("lock_and_load", TURN, |n| {
        for _ in 0..n {
            let guard = locked.read();
            assert_eq!(owner.read::<u64>(black_box(0)).ok(), Some(STAMP));
            drop(guard);
        }
    });
    contest.many("bar_read_8", TURN, |n| {
        for _ in 0..n {
            let mut bytes = [0; 8];
            let read = nic.read(BAR, black_box(0), &mut bytes[..]);
            assert!(matches!(read, Ok(8)) && u64::from_ne_bytes(bytes) == STAMP);
        }
    });
    contest.many("bar_read_4", TURN, |n| {
        for _ in 0..n {
            let mut bytes = [0; 4];
            let read = nic.read(BAR, black_box(0), &mut bytes[..]);
            assert!(matches!(read, Ok(4)) && bytes == STAMP.to_ne_bytes()[..4]);
        }
    });
    contest.many("bar_write_8", TURN, |n| {
        for _ in 0..n {
            assert!(matches!(nic.write(BAR, black_box(8), &STAMP.to_ne_bytes()[..]), Ok(8)));
        }
    });
    contest.many("bar_read_refused", TURN, |n| {
        for _ in 0..n {
            let mut bytes = [0; 8];
            assert!(off.read(BAR, black_box(0), &mut bytes[..]).is_err());
        }
    });
    contest.many("bar_read_4096", TURN, |n| {
        let mut page = [0; 4096];
        for _ in 0..n {
            assert!(matches!(nic.read(BAR, black_box(0), &mut page[..]), Ok(4096)));
        }
    });
    contest.many("config_read_4", TURN, |n| {
        for _ in 0..n {
            let mut bytes = [0; 4];
            assert!(matches!(nic.read(Space::Config, black_box(0), &mut bytes[..]), Ok(4)));
            assert_eq!(bytes, [0xf4, 0x1a, 0x10, 0x11]);
        }
    });
    contest.run(pick(300, 30), samples);
    assert_eq!(owner.read::<u64>(8).ok(), Some(STAMP), "the writes were these");
    contest.criterion();
}

/// Functions of one bus, each with a mapping.
fn functions(count: usize, strategy: Strategy) -> (Bus, Vec<(PciDevice, Mapping)>) {
    let functions: Vec<_> = (0..count)
        .map(|index| {
            let device = device(&format!("function {index}"), Some(strategy));
            let mapping = device.map(BAR, MapOptions::new()).expect("a mapping");
            (device, mapping)
        })
        .collect();
    (Bus::new(functions.iter().map(|(device, _)| device.clone())), functions)
}

fn hot_reset(strategy: Strategy, samples: &mut Samples, ratios: &mut Ratios) {
    let name = |count: usize| format!("hot_reset_{count}_{strategy}");
    for count in [1, 4, 16, 64] {
        let (bus, functions) = functions(count, strategy);
        for round in 0..pick(60, 12) {
            for (_, mapping) in &functions {
                // In use, that is, with its pages mapped.
                mapping.write(0, STAMP).expect("enabled");
            }
            let since = Instant::now();
            bus.hot_reset(
                |_| true,
                |members| {
                    // No mapping of any function is reachable now, so an access that may not wait is refused.
                    let away = functions.iter().all(|(_, mapping)| mapping.try_read::<u64>(0).is_err());
                    assert!(away && members.len() == count, "half revoked");
                    Ok(())
                },
            )
            .expect("a hot reset");
            let took = since.elapsed();
            assert!(functions.iter().all(|(_, mapping)| mapping.read::<u64>(0) == Ok(STAMP)), "nothing is lost");
            if round > 0 {
                samples.record(&name(count), 1, took);
            }
        }
    }
    let per_function = |count: usize| samples.p50(&name(count)).unwrap_or(f64::NAN) / count as f64;
    // Linear: a function among 64 costs as much as one among 4.
    ratios.add(&format!("pci.hot_reset_per_function_64/4_{strategy}"), per_function(64) / per_function(4), Some(1.5));
    ratios.add(&format!("pci.hot_reset_64_us_{strategy}"), 64.0 * per_function(64) / 1e3, None);
}
