//! Signal handlers that access a region, whatever they interrupt.

use crate::support;
use crate::support::matrix::STRATEGIES;
use crate::support::watchdog::Watchdog;
use crate::support::{child, storm, stress_time};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, MapOptions, Mapping, OnDisabled, Region};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The objects that the handlers of a storm access: mappings of one region, with every policy.
struct World {
    region: Region,
    mappings: Vec<Mapping>,
    /// Its accesses wait while the region is disabled, so the thread that enables it leaves it out.
    block: Option<Mapping>,
}

static WORLD: AtomicPtr<World> = AtomicPtr::new(std::ptr::null_mut());
/// The thread that changes the region's state, and the count of wrong results, since handlers can't panic.
static CHANGER: AtomicI32 = AtomicI32::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Counts of accesses that succeeded, were refused, and would have waited for their own thread.
static MET: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Every word that is stored in the region.
const WORD: u64 = 0x0706_0504_0302_0100;

fn met<T: Copy>(is_right: impl FnOnce(T) -> bool, result: Result<T, AccessError>) {
    let which = match result {
        Ok(value) if is_right(value) => 0,
        Err(AccessError::Disabled { .. } | AccessError::WouldBlock { .. }) => 1,
        Err(AccessError::Reentrant { .. }) => 2,
        _ => {
            WRONG.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    MET[which].fetch_add(1, Ordering::Relaxed);
}

/// Makes every kind of access once, at an offset that differs from call to call.
fn every_access() {
    #[expect(unsafe_code, reason = "a leaked world, for signal handlers")]
    // SAFETY: null or leaked.
    let Some(world) = (unsafe { WORLD.load(Ordering::Acquire).as_ref() }) else { return };
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let at = turn * 4168 % (LEN - 4096) / 8 * 8;
    let is_changer = CHANGER.load(Ordering::Relaxed) == nix::unistd::gettid().as_raw();
    let block = world.block.as_ref().filter(|_| !is_changer && turn % 7 == 0);
    for mapping in block.into_iter().chain([&world.mappings[turn % world.mappings.len()]]) {
        let known = |word: u64| word == WORD || word == u64::MAX;
        met(known, mapping.read::<u64>(at));
        met(|()| true, mapping.write(at, WORD));
        met(|found| found.is_ok() || found == Err(u64::MAX), mapping.compare_exchange(at, WORD, WORD));
        met(known, mapping.swap(at, WORD));
        met(known, mapping.fetch_add(at, 0_u64));
        met(known, mapping.fetch_or(at, 0_u64));
        met(known, mapping.try_read::<u64>(at));
        met(|()| true, mapping.try_write(at, WORD));
        met(known, mapping.read_with::<u64>(at, FaultFlags::NOWAIT));
        let register = mapping.register::<u64>(at).expect("it is inside");
        met(known, register.read());
        met(|()| true, register.write(WORD));
        let mut bytes = [0; 4096];
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&WORD.to_ne_bytes()));
        met(|()| true, mapping.write_slice(at, &bytes).map_err(|e| e.error));
        met(|()| true, mapping.read_slice(at, &mut bytes).map_err(|e| e.error));
        met(|()| true, mapping.fill(LEN - 8, 0, 8).map_err(|e| e.error));
    }
    met(|word| word == WORD, world.region.owner().read::<u64>(at));
}

const LEN: usize = 256 << 10;

#[test]
fn handlers_may_access_whatever_they_interrupt() {
    support::start();
    child::alone(|| {
        storm::prepare();
        storm::also(every_access);
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else { continue };
            (0..LEN - 8).step_by(8).for_each(|at| region.owner().write(at, WORD).expect("the owner writes"));
            let policies =
                [OnDisabled::Sigbus, OnDisabled::AllOnes].map(|policy| MapOptions::new().on_disabled(policy));
            let options = policies.iter().flat_map(|o| [o.clone(), o.clone().accessors_only()]);
            let mappings = options.map(|options| region.map(options).expect("it maps")).collect();
            let block = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).ok();
            let world: &World = Box::leak(Box::new(World { region, mappings, block }));
            WORLD.store((&raw const *world).cast_mut(), Ordering::Release);
            let before: Vec<u64> = MET.iter().map(|met| met.load(Ordering::Relaxed)).collect();
            storm_over(&world.region);
            WORLD.store(std::ptr::null_mut(), Ordering::Release);
            let now = MET.iter().zip(before).map(|(met, before)| met.load(Ordering::Relaxed) - before);
            let now: Vec<u64> = now.collect();
            eprintln!("{strategy}: {now:?} (well, refused, would have waited for its own thread)");
            assert_eq!(WRONG.load(Ordering::Relaxed), 0, "{strategy}: accesses of handlers with a wrong result");
            assert!(now[0] > 0 && now[1] > 0, "{strategy}: {now:?}");
        }
    })
    .well();
}

/// Runs threads that use a region in every way, each interrupted all the time.
fn storm_over(region: &Region) {
    let watchdog = Watchdog::new(&format!("handlers over {}", region.strategy()), Duration::from_secs(20));
    let end = AtomicBool::new(false);
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let again: [(&str, &(dyn Fn() + Sync)); 5] = [
        ("maps", &|| drop(region.map(MapOptions::new()).expect("it maps"))),
        ("guards", &|| {
            let _ = mapping.with_access(|_| thread::sleep(Duration::from_micros(50)));
        }),
        ("pins", &|| drop(region.pin(0..8, FaultFlags::WAIT))),
        ("accesses", &|| {
            let _ = (mapping.read::<u64>(8), mapping.read_with::<u64>(8, FaultFlags::DEFAULT));
        }),
        ("looks", &|| drop((region.stats(), format!("{region:?}")))),
    ];
    thread::scope(|scope| {
        for (name, work) in again {
            let end = &end;
            let work = move || {
                let _storm = storm::on_this_thread();
                while !end.load(Ordering::Relaxed) {
                    work();
                }
            };
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).expect("a thread");
        }
        CHANGER.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        let _storm = storm::on_this_thread();
        let since = Instant::now();
        while since.elapsed() < stress_time(1500) {
            assert!(region.disable().expect("guards and pins end"));
            thread::yield_now();
            assert!(region.enable().expect("it comes back"));
            region.reset(|_| thread::yield_now()).expect("it resets");
            watchdog.beat();
        }
        end.store(true, Ordering::Relaxed);
    });
}
