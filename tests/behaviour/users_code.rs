//! Users' code runs under no lock of the crate: whatever a trait or a closure that is handed in does (panic, drop what it can, ask
//! for what would have to wait for itself), nothing hangs, and the region works afterwards.

use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::{FaultFlags, NoLock};
use revocable_mmio::pci::{Bar, DmaAccess, DmaSegment, DmaSpace, IoEventLoop, Iommu, PciDevice, PortIo, Space, Width};
use revocable_mmio::{
    Caller, FaultQueue, FaultToken, InvalidateNotifier, MapOptions, Mapping, Monitor, NotifyError, OnDisabled, Pin,
    Region, ResetGroup, Strategy, Submitted,
};
use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

const BAR: Space = Space::Bar(0);
const LEN: usize = 64 << 10;
const IOVA: u64 = 1 << 32;
const ON: [u8; 2] = [2, 0];
const OFF: [u8; 2] = [0, 0];
const PATIENCE: Duration = Duration::from_secs(20);

/// What a callback gets at: a device of two BARs, and everything that can be had of it.
struct World {
    device: PciDevice,
    mapping: Arc<Mapping>,
    other: Mapping,
    space: Arc<DmaSpace>,
    group: ResetGroup,
    queue: FaultQueue,
    /// What callbacks may drop, or have made.
    dropped: Mutex<Vec<Box<dyn Any + Send + Sync>>>,
}

impl World {
    fn region(&self) -> &Region {
        self.device.region(BAR).expect("memory")
    }
}

/// What users' code does. It gets the world as soon as there is one.
type Does = fn(&World);

/// Runs what it was handed in, each time that it is called from wherever; and counts.
#[derive(Default)]
struct Code {
    world: Mutex<Option<Arc<World>>>,
    does: Mutex<Option<Does>>,
    calls: AtomicUsize,
}

impl Code {
    fn run(&self) {
        // Nothing of the test's is locked while it runs.
        let world = self.world.lock().expect("the world").clone();
        let does = *self.does.lock().expect("what it does");
        if let (Some(world), Some(does)) = (world, does) {
            self.calls.fetch_add(1, SeqCst);
            does(&world);
        }
    }
}

/// Says so if it is dropped by a callback, in its own way.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("a destructor's, by design");
        }
    }
}

struct Code_(Arc<Code>);

impl InvalidateNotifier for Code_ {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.run();
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.run();
        Ok(())
    }
}

impl Iommu for Code_ {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        self.0.run();
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {
        self.0.run();
    }
}

impl PortIo for Code_ {
    fn read(&self, _: u64, _: &mut [u8]) {
        self.0.run();
    }

    fn write(&self, _: u64, _: &[u8]) {
        self.0.run();
    }
}

impl Wake for Code_ {
    fn wake(self: Arc<Self>) {
        self.0.run();
    }
}

#[cfg(feature = "kvm")]
mod memslots {
    use super::Code_;
    use kvm_bindings::kvm_userspace_memory_region;
    use revocable_mmio::kvm::SetMemslot;

    #[expect(unsafe_code, reason = "the trait's own")]
    impl SetMemslot for Code_ {
        // SAFETY: nothing is done with the address.
        unsafe fn set(&self, _: &kvm_userspace_memory_region) -> std::io::Result<()> {
            self.0.run();
            Ok(())
        }
    }
}

/// Which users' code runs.
const WHERE: &[&str] = &[
    "notifier",
    "on_revoke",
    "waker",
    "iommu",
    "port",
    "on_reset",
    "privileged",
    "reset",
    "group reset",
    "memslot",
    "destructor of a notifier",
    "destructor of an on_revoke",
];

/// What it does.
const WHAT: &[(&str, Does)] = &[
    ("panics", |_| panic!("by design")),
    ("panics with a payload that panics", |_| std::panic::panic_any(Bomb)),
    ("drops everything", |world| {
        let all = std::mem::take(&mut *world.dropped.lock().expect("a list"));
        drop(all);
    }),
    ("disable", |world| fine(world.region().disable())),
    ("try_disable", |world| fine(world.region().try_disable())),
    ("enable", |world| fine(world.region().enable())),
    ("reset", |world| fine(world.region().reset(|_| ()))),
    ("map", |world| {
        let mapped = world.region().map(MapOptions::new());
        keep(world, mapped);
    }),
    ("pin", |world| {
        let pinned = world.region().pin(0..1, FaultFlags::NOWAIT);
        drop(fine_or(pinned));
    }),
    ("dma map", |world| {
        let segment = DmaSegment::device(&world.mapping, 0..4096);
        fine(world.space.map(2 * IOVA, &[segment], DmaAccess::ReadWrite));
    }),
    ("dma unmap", |world| {
        world.space.unmap(0, usize::MAX);
    }),
    ("subscribe and unsubscribe", |world| drop(world.region().subscribe(0..LEN, Arc::new(Code_(Arc::default()))))),
    ("subscribe", |world| {
        let subscription = world.region().subscribe(0..LEN, Arc::new(Code_(Arc::default())));
        world.dropped.lock().expect("a list").push(Box::new(subscription));
    }),
    ("group disable", |world| fine(world.group.try_disable())),
    ("group enable", |world| fine(world.group.try_enable())),
    ("group reset", |world| fine(world.group.try_reset(|_| ()))),
    ("device off", |world| fine(world.device.write(Space::Config, 4, &OFF[..]))),
    ("device on", |world| fine(world.device.write(Space::Config, 4, &ON[..]))),
    ("device reset", |world| fine(world.device.reset())),
    ("device low power", |world| fine(world.device.enter_low_power())),
    ("device privileged", |world| fine(world.device.privileged(|_| ()))),
    ("fault_async", |world| {
        let token = world.region().fault_async(0, blocking(), &world.queue);
        keep(world, token);
    }),
];

/// What would wait for itself in the thread that changes the state, and says `Reentrant`.
const WAITS: &[(&str, Does)] = &[
    ("with_access", |world| fine(world.mapping.with_access(|_| ()))),
    ("with_access of the other", |world| fine(world.other.with_access(|_| ()))),
    ("waiting pin", |world| drop(fine_or(world.region().pin(0..1, FaultFlags::WAIT)))),
    ("read", |world| fine(world.mapping.read::<u8>(0))),
    ("read of the other", |world| fine(world.other.read::<u8>(0))),
    ("read_with", |world| fine(world.mapping.read_with::<u8>(0, FaultFlags::WAIT))),
    ("fault_in", |world| fine(world.region().fault_in(0, FaultFlags::WAIT, &mut NoLock::default()))),
    ("device read", |world| fine(world.device.read(BAR, 0, &mut [0; 4][..]))),
];

fn blocking() -> Caller<'static> {
    Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block)
}

fn fine<T, E: Debug>(answer: Result<T, E>) {
    drop(fine_or(answer));
}

/// Done, or refused for a reason that has to do with where it was asked for.
fn fine_or<T, E: Debug>(answer: Result<T, E>) -> Option<T> {
    answer
        .map_err(|e| {
            let text = format!("{e:?}");
            let known = [
                "Reentrant",
                "WouldDeadlock",
                "WouldBlock",
                "Busy",
                "Disabled",
                "NoReset",
                "LowPower",
                "revoked",
                "Taken",
            ];
            assert!(known.iter().any(|known| text.contains(known)), "{text}");
        })
        .ok()
}

fn keep<T: Send + Sync + 'static, E: Debug>(world: &World, made: Result<T, E>) {
    if let Some(made) = fine_or(made) {
        world.dropped.lock().expect("a list").push(Box::new(made));
    }
}

struct Destructor(Arc<Code>);

impl Drop for Destructor {
    fn drop(&mut self) {
        self.0.run();
    }
}

impl InvalidateNotifier for Destructor {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

/// A world in which `code` is handed in at one place, and what makes it run.
fn world(place: &str, code: &Arc<Code>, strategy: Strategy) -> Option<Arc<World>> {
    let user = || Code_(Arc::clone(code));
    let nobody = || Arc::new(Code_(Arc::default()));
    let mut builder = PciDevice::builder(1, 2).command(2).power(0x40).strategy(strategy);
    builder = builder.bar(0, Bar::memory(LEN as u64)).bar(1, Bar::memory(LEN as u64));
    let ports: Arc<dyn PortIo> = if place == "port" { Arc::new(user()) } else { nobody() };
    builder = builder.bar(2, Bar::io(16, ports));
    let reset = Arc::clone(code);
    let resets = place == "on_reset";
    builder = builder.on_reset(move |_, _| {
        if resets {
            reset.run();
        }
        Ok(())
    });
    let device = builder.build().ok()?;
    let region = device.region(BAR).expect("memory");
    let mapping = Arc::new(device.map(BAR, MapOptions::new()).expect("it maps"));
    let other = device.map(Space::Bar(1), MapOptions::new()).expect("it maps");
    let iommu: Arc<dyn Iommu> = if place == "iommu" { Arc::new(user()) } else { nobody() };
    let space = Arc::new(DmaSpace::new(iommu));
    let group = ResetGroup::new([region, device.region(Space::Bar(1)).expect("memory")]);
    let queue = FaultQueue::new(64).expect("an eventfd");
    let mut dropped: Vec<Box<dyn Any + Send + Sync>> = Vec::new();
    dropped.push(Box::new(device.map(BAR, MapOptions::new()).expect("it maps")));
    dropped.push(Box::new(region.subscribe(0..LEN, nobody())));
    let pin = region.pin(0..1, FaultFlags::WAIT).expect("enabled");
    match place {
        "notifier" => dropped.push(Box::new(region.subscribe(0..LEN, Arc::new(user())))),
        "destructor of a notifier" => {
            dropped.push(Box::new(region.subscribe(0..LEN, Arc::new(Destructor(Arc::clone(code))))));
        }
        #[cfg(feature = "kvm")]
        "memslot" => {
            use revocable_mmio::kvm::{Memslots, Retention};
            let slots = Memslots::new(Arc::new(user()));
            let slot = slots.add(0, 1 << 32, Arc::clone(&mapping), Retention::Remove).expect("it is added");
            dropped.push(Box::new(slot));
        }
        _ => {}
    }
    drop(pin);
    Some(Arc::new(World { device, mapping, other, space, group, queue, dropped: Mutex::new(dropped) }))
}

/// Makes the code at `place` run, in whatever way it is called.
fn provoke(place: &str, world: &Arc<World>, code: &Arc<Code>) {
    let region = world.region();
    // What a callback panics with arrives here, where it is the caller's own.
    let quietly = |run: &mut dyn FnMut()| {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ended)));
    };
    match place {
        "port" => {
            quietly(&mut || drop(world.device.read(Space::Bar(2), 0, &mut [0; 4][..])));
            quietly(&mut || drop(world.device.write(Space::Bar(2), 0, &[0; 4][..])));
        }
        "on_reset" => quietly(&mut || drop(world.device.reset())),
        "privileged" => quietly(&mut || drop(world.device.privileged(|_| code.run()))),
        "reset" => quietly(&mut || drop(region.reset(|_| code.run()))),
        "group reset" => quietly(&mut || drop(world.group.try_reset(|_| code.run()))),
        "waker" => {
            let _ = region.disable();
            if let Ok(Submitted::Queued(token)) = region.fault_async(0, blocking(), &world.queue) {
                let mut token: Box<FaultToken> = Box::new(token);
                let waker = Waker::from(Arc::new(Code_(Arc::clone(code))));
                let _ = std::pin::Pin::new(&mut *token).poll(&mut Context::from_waker(&waker));
                world.dropped.lock().expect("a list").push(Box::new(token));
            }
            // By a group: the other member is being given back too.
            let _ = world.group.try_enable();
        }
        "iommu" => {
            let segment = DmaSegment::device(&world.mapping, 0..LEN);
            let _ = world.space.map(IOVA, &[segment], DmaAccess::ReadWrite);
            let _ = region.disable();
            let _ = region.enable();
            world.space.unmap(0, usize::MAX);
        }
        "on_revoke" | "destructor of an on_revoke" => {
            let pin: Arc<Mutex<Option<Pin>>> = Arc::default();
            let (theirs, calls) = (Arc::clone(&pin), Arc::clone(code));
            let destructor = (place != "on_revoke").then(|| Destructor(Arc::clone(code)));
            let taken = region.pin(0..LEN, FaultFlags::WAIT).expect("enabled").on_revoke(move || {
                if destructor.is_none() {
                    calls.run();
                }
                drop(theirs.lock().map(|mut pin| pin.take()));
            });
            // Its panic is before it lets go.
            *pin.lock().expect("a pin") = Some(taken);
            thread::scope(|scope| {
                scope.spawn(|| drop(region.disable()));
                thread::sleep(Duration::from_millis(3));
                drop(pin.lock().map(|mut pin| pin.take()));
            });
        }
        _ => {}
    }
    // Every change there is, and what is left of the world.
    let _ = region.disable();
    let _ = region.enable();
    let _ = world.device.write(Space::Config, 4, &OFF[..]);
    let _ = world.device.write(Space::Config, 4, &ON[..]);
    let all = std::mem::take(&mut *world.dropped.lock().expect("a list"));
    world.space.unmap(0, usize::MAX);
    drop(all);
}

fn run(what: &'static [(&'static str, Does)]) {
    support::start();
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let by_design = text.contains("by design") || info.payload().is::<Bomb>();
        if !by_design || std::env::var_os("REVOCABLE_SHOW").is_some() {
            eprintln!("{info}");
        }
    }));
    let mut ran: HashMap<&str, usize> = HashMap::new();
    for strategy in [Strategy::Detach, Strategy::Zap, Strategy::Replace] {
        for place in WHERE {
            for (name, does) in what {
                let title = format!("{place} that calls {name}, {strategy}");
                if (place.ends_with("reset") || *place == "privileged")
                    && name.starts_with("read")
                    && *name != "read_with"
                {
                    // A page fault that waits for the end of the callback: `Region::reset` says to use `try_read`.
                    continue;
                }
                if std::env::var_os("REVOCABLE_SHOW").is_some() {
                    eprintln!("{title}");
                }
                let _watchdog = Watchdog::new(&title, PATIENCE);
                let code = Arc::new(Code::default());
                let Some(world) = world(place, &code, strategy) else { continue };
                *code.world.lock().expect("the world") = Some(Arc::clone(&world));
                *code.does.lock().expect("what it does") = Some(*does);
                provoke(place, &world, &code);
                *code.does.lock().expect("what it does") = None;
                *code.world.lock().expect("the world") = None;
                *ran.entry(*place).or_default() += code.calls.load(SeqCst);
                // It works afterwards.
                let region = world.region();
                let _ = world.device.exit_low_power();
                region.enable().unwrap_or_else(|e| panic!("{title}: {e}"));
                world.device.write(Space::Config, 4, &OFF[..]).unwrap_or_else(|e| panic!("{title}: {e}"));
                world.device.write(Space::Config, 4, &ON[..]).unwrap_or_else(|e| panic!("{title}: {e}"));
                world.mapping.write(8, 7_u64).unwrap_or_else(|e| panic!("{title}: {e}"));
                assert!(region.disable().unwrap_or_else(|e| panic!("{title}: {e}")), "{title}");
                assert!(world.mapping.read::<u64>(8).is_err(), "{title}");
                assert!(region.enable().unwrap_or_else(|e| panic!("{title}: {e}")), "{title}");
                assert_eq!(world.mapping.read::<u64>(8), Ok(7), "{title}");
                let segment = DmaSegment::device(&world.mapping, 0..LEN);
                world.space.map(4 * IOVA, &[segment], DmaAccess::Read).unwrap_or_else(|e| panic!("{title}: {e}"));
                assert_eq!(world.space.unmap(4 * IOVA, LEN), LEN, "{title}");
            }
        }
    }
    for place in WHERE {
        let unheard = *place == "memslot" && !cfg!(feature = "kvm");
        assert!(unheard || ran.get(place).copied().unwrap_or(0) > 0, "the code of {place} was never called");
    }
}

#[test]
fn whatever_users_code_does_nothing_hangs_and_the_region_works_afterwards() {
    support::start();
    run(WHAT);
}

#[test]
fn users_code_that_would_wait_for_itself_is_told() {
    support::start();
    run(WAITS);
}

/// A notifier, an IOMMU and a memslot adapter whose destructors panic.
struct Explodes(Bomb);

impl InvalidateNotifier for Explodes {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

impl Iommu for Explodes {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {}
}

impl PortIo for Explodes {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {}
}

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_destructor_that_panics_ends_nothing() {
    support::start();
    let _watchdog = Watchdog::new("destructors", PATIENCE);
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    drop(region.subscribe(0..LEN, Arc::new(Explodes(Bomb))));
    let bomb = Explodes(Bomb);
    let pin = region.pin(0..1, FaultFlags::WAIT).expect("enabled").on_revoke(move || {
        let _ = &bomb;
    });
    drop(pin.on_revoke(|| ()));
    let space = DmaSpace::new(Arc::new(Explodes(Bomb)));
    space.map(IOVA, &[DmaSegment::device(&mapping, 0..LEN)], DmaAccess::Read).expect("enabled");
    drop(space);
    region.disable().expect("nothing is in the way");
    let queue = FaultQueue::new(8).expect("an eventfd");
    let Ok(Submitted::Queued(mut token)) = region.fault_async(0, blocking(), &queue) else { panic!("it is disabled") };
    let waker = Waker::from(Arc::new(Explodes(Bomb)));
    let _ = std::pin::Pin::new(&mut token).poll(&mut Context::from_waker(&waker));
    std::mem::forget(waker);
    region.enable().expect("nothing is in the way");
    assert_eq!(mapping.read::<u8>(0), Ok(0));
    let ports = Arc::new(Explodes(Bomb));
    let reset = Explodes(Bomb);
    let device = PciDevice::builder(1, 2).bar(0, Bar::io(16, ports)).on_reset(move |_, _| {
        let _ = &reset;
        Ok(())
    });
    drop(device.build().expect("a device"));
    let monitor = Monitor::with_threads(1);
    if let Ok(monitor) = monitor {
        let bomb = Explodes(Bomb);
        monitor.on_thread_start(move || {
            let _ = &bomb;
        });
        monitor.on_thread_start(|| ());
    }
}

/// An IOMMU that counts.
#[derive(Default)]
struct Counts(AtomicUsize, AtomicUsize);

impl Iommu for Counts {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {
        self.1.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_refused_try_is_felt_by_nobody() {
    support::start();
    let regions = [0; 3].map(|_| Region::builder(LEN).build().expect("it builds"));
    let maps: Vec<_> = regions.iter().map(|region| region.map(MapOptions::new()).expect("it maps")).collect();
    let iommu = Arc::new(Counts::default());
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    for (iova, mapping) in [1, 2, 3].into_iter().zip(&maps) {
        let segment = DmaSegment::device(mapping, 0..LEN);
        space.map(iova << 32, &[segment], DmaAccess::ReadWrite).expect("enabled");
    }
    let group = ResetGroup::new(&regions);
    let unmaps = || iommu.1.load(SeqCst);
    for (region, mapping) in regions.iter().zip(&maps) {
        let pin = region.pin(0..1, FaultFlags::WAIT).expect("enabled");
        for _ in 0..10 {
            region.try_disable().expect_err("pinned");
            region.try_reset(|_| ()).expect_err("pinned");
            group.try_disable().expect_err("pinned");
            group.try_reset(|_| ()).expect_err("pinned");
        }
        drop(pin);
        assert_eq!(unmaps(), 0, "pinned");
        let (held, drop_it) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _access = mapping.try_access().expect("enabled");
                held.wait();
                drop_it.wait();
            });
            held.wait();
            for _ in 0..10 {
                region.try_disable().expect_err("guarded");
                group.try_disable().expect_err("guarded");
            }
            drop_it.wait();
        });
        let access = mapping.try_access().expect("enabled");
        region.disable().expect_err("guarded by this thread");
        group.try_disable().expect_err("guarded by this thread");
        drop(access);
        assert_eq!(unmaps(), 0, "guarded");
    }
    group.try_disable().expect("nothing is in the way");
    assert_eq!(unmaps(), 3);
    group.try_enable().expect("nothing is in the way");
}

/// A thread that turns a device's memory off waits for a guard that this one holds of one of its BARs.
#[test]
fn the_holder_of_another_bars_guard_is_told_and_waits_for_nothing() {
    support::start();
    let _watchdog = Watchdog::new("a device that is turned off", PATIENCE);
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
    let device = device.build().expect("a device");
    // Either BAR may be the one that is closed first.
    let mut told = 0;
    for held in [0, 1] {
        let maps = [held, 1 - held].map(|bar| device.map(Space::Bar(bar), MapOptions::new()).expect("a mapping"));
        let space = DmaSpace::new(Arc::new(Counts::default()));
        let access = maps[0].try_access().expect("enabled");
        thread::scope(|scope| {
            scope.spawn(|| device.write(Space::Config, 4, &OFF[..]).expect("COMMAND"));
            thread::sleep(Duration::from_millis(30));
            told += check(&device, &maps, &space, held);
            drop(access);
        });
        assert!(!device.is_memory_enabled());
        device.write(Space::Config, 4, &ON[..]).expect("COMMAND");
    }
    assert!(told >= 7, "{told}");
}

/// Asks for everything that would wait for the other BAR; how much of it was refused.
fn check(device: &PciDevice, maps: &[Mapping; 2], space: &DmaSpace, held: usize) -> usize {
    let other = device.region(Space::Bar(1 - held)).expect("memory");
    let answers = [
        format!("{:?}", maps[1].with_access(|_| ())),
        format!("{:?}", other.pin(0..1, FaultFlags::WAIT).map(drop)),
        format!("{:?}", space.map(IOVA, &[DmaSegment::device(&maps[1], 0..4096)], DmaAccess::Read)),
        format!("{:?}", other.disable().map(|_| other.enable())),
        format!("{:?}", device.write(Space::Config, 4, &ON[..])),
        format!("{:?}", device.enter_low_power()),
        format!("{:?}", device.privileged(|_| ())),
    ];
    space.unmap(0, usize::MAX);
    let told = |text: &&String| text.contains("WouldDeadlock");
    assert!(answers.iter().all(|text| told(&text) || text.starts_with("Ok")), "{answers:?}");
    answers.iter().filter(told).count()
}

/// A thread in the middle of one BAR's change asks for what waits for the device's, which waits for the BAR.
#[test]
fn changes_of_a_bar_and_of_its_device_do_not_wait_for_each_other() {
    struct Asks(PciDevice, usize, mpsc::SyncSender<()>, Mutex<mpsc::Sender<[String; 3]>>);
    impl InvalidateNotifier for Asks {
        fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
            self.2.send(())?;
            // Until the device's change waits for this one.
            thread::sleep(Duration::from_millis(30));
            let other = self.0.region(Space::Bar(1 - self.1)).expect("memory");
            self.3.lock().expect("the channel").send([
                format!("{:?}", other.disable().map(|_| other.enable())),
                format!("{:?}", self.0.write(Space::Config, 4, &ON[..])),
                format!("{:?}", self.0.privileged(|_| ())),
            ])?;
            Ok(())
        }
        fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
            Ok(())
        }
    }
    support::start();
    let _watchdog = Watchdog::new("a BAR's change and its device's", PATIENCE);
    let mut answers = Vec::new();
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
    let device = device.build().expect("a device");
    for bar in [0, 1] {
        let region = device.region(Space::Bar(bar)).expect("memory");
        let ((inside, is_inside), (tell, told)) = (mpsc::sync_channel(0), mpsc::channel());
        let asks = Arc::new(Asks(device.clone(), bar, inside, Mutex::new(tell)));
        let subscription = region.subscribe(0..4096, asks);
        thread::scope(|scope| {
            scope.spawn(|| region.disable().expect("nothing is in the way"));
            is_inside.recv().expect("the BAR's change");
            device.write(Space::Config, 4, &OFF[..]).expect("COMMAND");
        });
        answers.extend(told.recv().expect("an answer"));
        drop(subscription);
        device.write(Space::Config, 4, &ON[..]).expect("COMMAND");
    }
    let refused = |text: &&String| text.contains("WouldDeadlock") || text.contains("Reentrant");
    assert!(answers.iter().all(|text| refused(&text) || text.starts_with("Ok")), "{answers:?}");
    // The device's change holds the other BAR in one of the two orders.
    assert_eq!(answers.iter().filter(refused).count(), 5, "{answers:?}");
}

#[test]
fn the_iommu_says_what_it_says_and_a_panic_leaves_nothing_behind() {
    support::start();
    struct Refuses(Mutex<Vec<(u64, usize)>>);
    impl Iommu for Refuses {
        fn map(&self, iova: u64, _: *mut u8, len: usize, _: DmaAccess) -> io::Result<()> {
            if iova == IOVA {
                return Err(io::Error::from_raw_os_error(28));
            }
            self.0.lock().expect("a list").push((iova, len));
            panic!("by design")
        }
        fn unmap(&self, iova: u64, len: usize) {
            self.0.lock().expect("a list").retain(|mapped| *mapped != (iova, len));
        }
    }
    let iommu = Arc::new(Refuses(Mutex::default()));
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let segment = DmaSegment::device(&mapping, 0..LEN);
    let refused = space.map(IOVA, std::slice::from_ref(&segment), DmaAccess::Read).expect_err("ENOSPC");
    assert!(refused.errno() == 28 && refused.to_string().contains("No space"), "{refused}");
    assert!(space.map(2 * IOVA, &[segment], DmaAccess::Read).is_err());
    assert!(iommu.0.lock().expect("a list").is_empty(), "what panicked was taken out");
    assert_eq!(space.unmap(0, usize::MAX), 0);
}

#[test]
fn a_panicking_port_ends_its_own_write_and_no_others() {
    support::start();
    let _watchdog = Watchdog::new("a port that panics", PATIENCE);
    struct Panics;
    impl PortIo for Panics {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {
            panic!("by design")
        }
    }
    let bad = PciDevice::builder(1, 2).bar(0, Bar::io(16, Arc::new(Panics))).build().expect("a device");
    let good = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).build().expect("a device");
    let events = [(); 3].map(|()| nix::sys::eventfd::EventFd::new().expect("an eventfd"));
    bad.add_ioeventfd(0, 0, Width::One, 1, events[0].as_fd()).expect("an ioeventfd");
    good.add_ioeventfd(0, 0, Width::One, 1, events[1].as_fd()).expect("an ioeventfd");
    for _ in 0..3 {
        events[0].write(1).expect("signalled");
        thread::sleep(Duration::from_millis(5));
    }
    let written = |at: usize| good.owner(BAR).expect("memory").read::<u8>(at) == Ok(1);
    events[1].write(1).expect("signalled");
    support::eventually("the other port's write is made", || written(0));
    good.add_ioeventfd(0, 1, Width::One, 1, events[2].as_fd()).expect("an ioeventfd");
    events[2].write(1).expect("signalled");
    support::eventually("a new port's write is made", || written(1));
}

#[test]
fn two_loops_at_one_eventfd_never_wait_for_each_other() {
    support::start();
    let _watchdog = Watchdog::new("two loops", PATIENCE);
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd, a blocking one");
    let made: Vec<_> = (0..2)
        .map(|_| {
            let kicks = IoEventLoop::manual().expect("a loop");
            let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).io_event_loop(kicks.clone());
            let device = device.build().expect("a device");
            device.add_ioeventfd(0, 0, Width::Four, 1, event.as_fd()).expect("an ioeventfd");
            (kicks, device)
        })
        .collect();
    let both = Barrier::new(2);
    thread::scope(|scope| {
        for (kicks, _) in &made {
            scope.spawn(|| {
                for round in 0..20_000 {
                    if both.wait().is_leader() && round % 2 == 0 {
                        event.write(1).expect("signalled");
                    }
                    both.wait();
                    kicks.handle_ready().expect("a loop");
                }
            });
        }
    });
}

/// An IOMMU that, while another thread's revocation waits for its call, asks for what waits for that revocation.
#[test]
fn an_iommu_that_a_revocation_waits_for_does_not_wait_for_the_revocation() {
    struct Asks(Mutex<Option<mpsc::SyncSender<()>>>, Arc<PciDevice>, Mutex<Vec<String>>);
    impl Asks {
        fn ask(&self) {
            let Some(inside) = self.0.lock().expect("the channel").take() else { return };
            inside.send(()).expect("the test waits for it");
            // Until the revocation waits for this call.
            thread::sleep(Duration::from_millis(30));
            let region = self.1.region(BAR).expect("memory");
            let answers = [
                format!("{:?}", region.disable()),
                format!("{:?}", region.reset(|_| ())),
                format!("{:?}", self.1.write(Space::Config, 4, &OFF[..])),
                format!("{:?}", region.pin(0..1, FaultFlags::WAIT).map(drop)),
            ];
            self.2.lock().expect("a list").extend(answers);
        }
    }
    impl Iommu for Asks {
        fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
            self.ask();
            Ok(())
        }
        fn unmap(&self, _: u64, _: usize) {
            self.ask();
        }
    }
    support::start();
    let _watchdog = Watchdog::new("an IOMMU", PATIENCE);
    for (unmaps, by_device) in [(false, false), (true, false), (false, true), (true, true)] {
        let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
        let device = Arc::new(device.build().expect("a device"));
        let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
        let iommu = Arc::new(Asks(Mutex::default(), Arc::clone(&device), Mutex::default()));
        let space = DmaSpace::new(Arc::clone(&iommu) as _);
        let segment = DmaSegment::device(&mapping, 0..4096);
        let (inside, is_inside) = mpsc::sync_channel(0);
        let arm = || *iommu.0.lock().expect("the channel") = Some(inside);
        let map = || space.map(IOVA, std::slice::from_ref(&segment), DmaAccess::ReadWrite);
        if unmaps {
            map().expect("enabled");
        }
        arm();
        thread::scope(|scope| {
            let device = &device;
            let off = scope.spawn(move || {
                is_inside.recv().expect("the call begins");
                match by_device {
                    true => drop(device.write(Space::Config, 4, &OFF[..]).expect("COMMAND")),
                    false => drop(device.region(BAR).expect("memory").disable().expect("nothing is in the way")),
                }
            });
            match unmaps {
                true => assert_eq!(space.unmap(IOVA, 4096), 4096),
                false => drop(map()),
            }
            off.join().expect("it ends");
        });
        let answers = iommu.2.lock().expect("a list");
        assert!(answers[..3].iter().all(|text| text.contains("Reentrant")), "{answers:?}");
        assert_eq!(answers[3], "Ok(())", "the memory is there until the call ends");
        assert!(mapping.read::<u8>(0).is_err());
    }
}

/// Whoever is woken may use another member at once, whichever of them comes first.
#[test]
fn a_waker_of_one_member_of_a_group_can_read_another() {
    struct Reads(Arc<Mapping>, Arc<Mutex<Vec<String>>>);
    impl Wake for Reads {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("a list").push(format!("{:?}", self.0.read::<u8>(4096)));
        }
    }
    support::start();
    let _watchdog = Watchdog::new("a waker", PATIENCE);
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        let build = |_| Region::builder(LEN).strategy(strategy).build().ok();
        let [Some(one), Some(two)] = [0, 1].map(build) else { continue };
        let regions = [one, two];
        let maps = [0, 1].map(|at: usize| Arc::new(regions[at].map(MapOptions::new()).expect("it maps")));
        let group = ResetGroup::new(&regions);
        group.try_disable().expect("nothing is in the way");
        let queue = FaultQueue::new(8).expect("an eventfd");
        let read = Arc::new(Mutex::new(Vec::new()));
        let tokens = [0, 1].map(|at: usize| {
            let Ok(Submitted::Queued(token)) = regions[at].fault_async(0, blocking(), &queue) else {
                panic!("disabled")
            };
            let mut token = Box::pin(token);
            let waker = Waker::from(Arc::new(Reads(Arc::clone(&maps[1 - at]), Arc::clone(&read))));
            assert!(token.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            token
        });
        group.try_enable().expect("nothing is in the way");
        assert_eq!(*read.lock().expect("a list"), ["Ok(0)"; 2], "{strategy}");
        drop(tokens);
    }
}
