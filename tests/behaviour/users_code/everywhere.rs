//! Every callback does everything that it could.

use super::{BAR, Bomb, Code, Code_, Does, IOVA, LEN, OFF, ON, PATIENCE, World, blocking};
use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::{FaultFlags, NoLock};
use revocable_mmio::pci::{Bar, DmaAccess, DmaSegment, DmaSpace, Iommu, PciDevice, PortIo, Space};
use revocable_mmio::{
    FaultQueue, FaultToken, InvalidateNotifier, MapOptions, NotifyError, Pin, ResetGroup, Strategy, Submitted, Support,
};
use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

/// The places where users' code runs.
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
    "memslot's error",
    "ioeventfd",
    "destructor of a notifier",
    "destructor of an on_revoke",
];

/// What users' code does there.
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
    ("group try_disable", |world| fine(world.group.try_disable())),
    ("group try_enable", |world| fine(world.group.try_enable())),
    ("group try_reset", |world| fine(world.group.try_reset(|_| ()))),
    ("group disable", |world| fine(world.group.disable())),
    ("group enable", |world| fine(world.group.enable())),
    ("group reset", |world| fine(world.group.reset(|_| ()))),
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

/// Calls that would wait for themselves in the thread that changes the state, and return `Reentrant`.
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

fn fine<T, E: Debug>(answer: Result<T, E>) {
    drop(fine_or(answer));
}

/// Succeeds, or is refused for a reason that has to do with the place of the call.
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
                // Of a fault, the same.
                "Sigbus",
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

/// A world in which `code` is one of the users' objects, at a place where `provoke` makes it run.
pub(super) fn world(place: &str, code: &Arc<Code>, strategy: Strategy) -> Option<Arc<World>> {
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
        "memslot" => {
            use revocable_mmio::memslot::{Memslots, Retention};
            let slots = Memslots::new(Arc::new(user()));
            let added = slots.add(0, 1 << 32, Arc::clone(&mapping), Retention::Remove);
            if added.is_err() && !Support::current().sees_kernel_faults() {
                // Under Zap, without a userfaultfd for a vCPU's faults.
                return None;
            }
            dropped.push(Box::new(added.expect("it is added")));
        }
        "memslot's error" => {
            use revocable_mmio::memslot::{Memslots, Retention};
            let slots = Memslots::new(Arc::new(super::memslots::Refuses::default()));
            let code = Arc::clone(code);
            slots.on_error(move |_| code.run());
            let added = slots.add(0, 1 << 32, Arc::clone(&mapping), Retention::Remove);
            if added.is_err() && !Support::current().sees_kernel_faults() {
                // Under Zap, without a userfaultfd for a vCPU's faults.
                return None;
            }
            dropped.push(Box::new(added.expect("it is added")));
        }
        "ioeventfd" => {
            use revocable_mmio::ioeventfd::{IoEventFds, Width};
            let doorbells = IoEventFds::new(Arc::new(user()), region, 1 << 32).expect("nothing is in the way");
            let bell = nix::sys::eventfd::EventFd::new().expect("an eventfd");
            // The code may panic.
            let _ = doorbells.add(8, Width::Four, None, std::os::fd::AsFd::as_fd(&bell));
            dropped.push(Box::new(doorbells));
        }
        _ => {}
    }
    drop(pin);
    Some(Arc::new(World { device, mapping, other, space, group, queue, dropped: Mutex::new(dropped) }))
}

/// Makes the code at `place` run, in every way that it is called there.
fn provoke(place: &str, world: &Arc<World>, code: &Arc<Code>) {
    let region = world.region();
    // A panic of a callback arrives here if the callback is the caller's own.
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
            // By a group, so that the other member is given back too.
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
            // A callback that panics has not dropped the pin. It is dropped below.
            *pin.lock().expect("a pin") = Some(taken);
            thread::scope(|scope| {
                scope.spawn(|| drop(region.disable()));
                thread::sleep(Duration::from_millis(3));
                drop(pin.lock().map(|mut pin| pin.take()));
            });
        }
        _ => {}
    }
    // Makes every kind of change, and drops what is left of the world.
    let _ = region.disable();
    let _ = region.enable();
    let _ = world.device.write(Space::Config, 4, &OFF[..]);
    let _ = world.device.write(Space::Config, 4, &ON[..]);
    let all = std::mem::take(&mut *world.dropped.lock().expect("a list"));
    world.space.unmap(0, usize::MAX);
    drop(all);
}

pub(super) fn run(what: &'static [(&'static str, Does)]) {
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
                    // A page fault waits for the end of the callback. `Region::reset` advises `try_read` for that.
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
                // The region works afterwards.
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
        assert!(ran.get(place).copied().unwrap_or(0) > 0, "the code of {place} was never called");
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
