//! Accesses of every kind while another thread toggles the memory bit (section g).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{Hit, load, store};
use nix::libc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

const VALUE: u64 = 0x1234_5678_9abc_def0;

/// The outcome of one access.
#[derive(PartialEq)]
enum Came {
    Through,
    Refused,
    WrongAddress,
    WrongValue,
    Otherwise,
}

pub(crate) fn toggling(s: &mut Suite) {
    s.section("g");
    let device = ivshmem(s);
    let mapping = map(&device, BAR2);
    let base = mapping.as_ptr().expose_provenance();
    store(mapping.as_ptr(), 8, VALUE).expect("enabled");
    let at = || std::ptr::with_exposed_provenance_mut::<u8>(base);
    let of = |result: Result<u64, Hit>| match result {
        Ok(VALUE) => Came::Through,
        Ok(_) => Came::WrongValue,
        Err(met) if met.signal != libc::SIGBUS || met.code != 2 => Came::Otherwise,
        Err(met) if met.addr != base => Came::WrongAddress,
        Err(_) => Came::Refused,
    };
    let called = |result: Result<usize, revocable_mmio::pci::PciError>, value: u64| match result {
        Ok(8) if value == VALUE => Came::Through,
        Ok(_) => Came::WrongValue,
        Err(e) if e.errno() == libc::EIO => Came::Refused,
        Err(_) => Came::Otherwise,
    };
    let loads = || of(load(at(), 8));
    let stores = || of(store(at(), 8, VALUE).map(|()| VALUE));
    let preads = || {
        let mut bytes = [0; 8];
        let read = device.read(BAR2, 0, &mut bytes[..]);
        called(read, u64::from_ne_bytes(bytes))
    };
    let pwrites = || called(device.write(BAR2, 0, &VALUE.to_ne_bytes()[..]), VALUE);
    let kinds: [(&str, &str, &(dyn Fn() -> Came + Sync)); 4] = [
        ("loads", "SIGBUS", &loads),
        ("stores", "SIGBUS", &stores),
        ("preads", "EIO", &preads),
        ("pwrites", "EIO", &pwrites),
    ];
    for (name, refusal, access) in kinds {
        for threads in [1, 2] {
            let outcome = race(&device, threads, refusal, access);
            s.row(&format!("{threads} thread(s) of {name} while another toggles the bit"), outcome);
        }
    }
    let toggler = || (0..1000).for_each(|_| drop((off(&device), on(&device))));
    thread::scope(|scope| {
        scope.spawn(toggler);
        scope.spawn(toggler);
    });
    on(&device);
    s.more("two threads toggling, 1000 times each, then on: load", format!("{}", loads() == Came::Through), "true");
    let accessors = || match mapping.read::<u64>(0) {
        Ok(VALUE) => Came::Through,
        Ok(_) => Came::WrongValue,
        Err(revocable_mmio::AccessError::Disabled { .. }) => Came::Refused,
        Err(_) => Came::Otherwise,
    };
    let expected = expected("Err");
    s.more("2 threads of accessors while another toggles the bit", race(&device, 2, "Err", &accessors), &expected);
}

fn expected(refusal: &str) -> String {
    format!(
        "many toggles; succeeded: many; refused ({refusal}): many; succeeded wholly after disable returned and before \
         enable was called: 0; refused wholly after enable returned: 0; wrong si_addr: 0; wrong value: 0; other \
         signal/errno: 0"
    )
}

/// Counts accesses against a clock of changes: 4n enabled, 4n+1 disabling, 4n+2 disabled, 4n+3 enabling.
fn race(
    device: &revocable_mmio::pci::PciDevice,
    threads: usize,
    refusal: &str,
    access: &(dyn Fn() -> Came + Sync),
) -> String {
    let (clock, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let counters: [AtomicU64; 7] = Default::default();
    let [through, refused, late, early, address, value, other] = &counters;
    let mut toggles = 0u64;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let before = clock.load(SeqCst);
                    let came = access();
                    let after = clock.load(SeqCst);
                    // No change happened meanwhile, so the state is known.
                    let within = |phase| before == after && before % 4 == phase;
                    let counter = match came {
                        Came::Through if within(2) => late,
                        Came::Through => through,
                        Came::Refused if within(0) => early,
                        Came::Refused => refused,
                        Came::WrongAddress => address,
                        Came::WrongValue => value,
                        Came::Otherwise => other,
                    };
                    counter.fetch_add(1, SeqCst);
                }
            });
        }
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until || through.load(SeqCst).min(refused.load(SeqCst)).min(toggles) < 20 {
            clock.fetch_add(1, SeqCst);
            off(device);
            clock.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_micros(100));
            clock.fetch_add(1, SeqCst);
            on(device);
            clock.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_micros(100));
            toggles += 1;
        }
        stop.store(true, SeqCst);
    });
    let many = |n: u64| if n >= 20 { "many".to_owned() } else { n.to_string() };
    let n = |counter: &AtomicU64| counter.load(SeqCst);
    format!(
        "{} toggles; succeeded: {}; refused ({refusal}): {}; succeeded wholly after disable returned and before enable \
         was called: {}; refused wholly after enable returned: {}; wrong si_addr: {}; wrong value: {}; other \
         signal/errno: {}",
        many(toggles),
        many(n(through)),
        many(n(refused)),
        n(late),
        n(early),
        n(address),
        n(value),
        n(other)
    )
}
