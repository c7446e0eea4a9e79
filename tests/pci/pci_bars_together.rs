//! One write of the command register changes the state of several BARs. A thread that holds one of them back may use
//! the others until it lets go.

use crate::support;
use crate::support::raw;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{AccessError, MapOptions, Mapping};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
const PAGE: usize = 4096;
const OFF: [u8; 2] = [0, 0];

/// Runs `test` twice: each BAR is held once while the other is used. So the order in which a device takes its BARs makes
/// no difference.
fn both_ways(test: impl Fn(&PciDevice, Space, Arc<Mapping>, Arc<Mapping>)) {
    support::start();
    let watchdog = Watchdog::new("BARs together", Duration::from_secs(30));
    for strategy in support::matrix::STRATEGIES {
        for (held, used) in [(0, 1), (1, 0)] {
            let builder = PciDevice::builder(1, 2).command(2).strategy(strategy);
            let Ok(device) = builder.bar(0, Bar::memory(LEN as u64)).bar(1, Bar::memory(LEN as u64)).build() else {
                println!("{strategy} is not possible");
                continue;
            };
            let [held, used] = [held, used].map(Space::Bar);
            let [guarded, other] =
                [held, used].map(|bar| Arc::new(device.map(bar, MapOptions::new()).expect("it maps")));
            test(&device, held, guarded, other);
            watchdog.beat();
        }
    }
}

/// Loads from pages that have not been touched, so that under Zap each is a fault.
fn use_all(mapping: &Mapping, since: Instant) {
    for page in (0..LEN).step_by(PAGE) {
        if since.elapsed() < Duration::from_millis(200) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(mapping.read::<u64>(page), Ok(0));
        assert_eq!(raw::load64(mapping.as_ptr().expose_provenance() + page + 8), Ok(0));
    }
}

#[test]
fn the_holder_of_a_guard_of_one_bar_uses_another_while_both_are_to_be_revoked() {
    both_ways(|device, _, held, used| {
        let (told, tell) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _access = held.try_access().expect("enabled");
                told.send(()).expect("the test listens");
                use_all(&used, Instant::now());
            });
            tell.recv().expect("a guard is held");
            device.write(Space::Config, 4, &OFF[..]).expect("COMMAND");
        });
        for mapping in [&held, &used] {
            assert_eq!(mapping.read::<u64>(0), Err(AccessError::Disabled { offset: 0 }));
        }
    });
}

#[test]
fn who_is_told_to_give_a_pin_of_one_bar_back_stops_its_engine_by_another() {
    both_ways(|device, bar, held, used| {
        let (told, tell) = mpsc::channel();
        let region = device.region(bar).expect("a BAR");
        let pin = region.pin(0..PAGE, FaultFlags::WRITE).expect("enabled");
        let engine = Arc::clone(&used);
        let pin = pin.on_revoke(move || {
            for page in (0..LEN).step_by(PAGE) {
                engine.write(page, 1_u32).expect("the engine's registers are there");
            }
            let _ = told.send(());
        });
        thread::scope(|scope| {
            scope.spawn(move || {
                tell.recv().expect("it is told");
                drop(pin);
            });
            device.write(Space::Config, 4, &OFF[..]).expect("COMMAND");
        });
        assert_eq!(held.read::<u64>(0), Err(AccessError::Disabled { offset: 0 }));
        assert_eq!(device.owner(bar).map(|owner| owner.read::<u32>(0)), Some(Ok(0)), "no store got there");
    });
}
