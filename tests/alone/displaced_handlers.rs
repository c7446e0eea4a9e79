//! Other handlers of SIGBUS and SIGSEGV replace the crate's. Building or revoking a region puts the crate's in front
//! again.
#![expect(unsafe_code, reason = "signal handlers are installed")]
// UNSAFETY: sigaction, with handlers that end the process or are the crate's own.

use crate::support::child::alone;
use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{
    AccessError, Backing, InvalidateNotifier, MapOptions, Mapping, NotifyError, Prot, Region, ResetGroup, Subscription,
    signal,
};
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LEN: usize = 128 << 10;
/// Whole pages on every machine.
const HALF: usize = LEN / 2;
const BAR: Space = Space::Bar(0);
const COMMAND: u64 = 4;
const SIGNALS: [c_int; 2] = [libc::SIGBUS, libc::SIGSEGV];
/// The accessors fault and recover here. Elsewhere they look at the state under a lock.
const RECOVERS: bool =
    cfg!(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(revocable_portable, miri))));
const PATIENCE: Duration = Duration::from_secs(20);

/// A handler that does not know the crate: the first revoked access that it gets ends the process.
extern "C" fn stranger(_: c_int) {
    std::process::abort();
}

/// How often [`own`] was called.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A handler that passes faults on to the crate, as [`signal::own_handlers`] demands.
extern "C" fn own(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: the arguments of this handler, which is installed with SA_SIGINFO.
    if !unsafe { signal::try_handle(signal, info, context) } {
        std::process::abort();
    }
}

/// The ways to displace a handler: the default action, ignoring the signal, another handler.
fn strangers() -> [usize; 3] {
    [libc::SIG_DFL, libc::SIG_IGN, stranger as extern "C" fn(c_int) as usize]
}

/// Sets the dispositions of both signals.
fn displace(handler: usize, flags: c_int) {
    for signal in SIGNALS {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        // SAFETY: a valid set.
        unsafe { libc::sigfillset(&raw mut action.sa_mask) };
        // SAFETY: a valid action; the handler ends the process, or is the crate's.
        let rc = unsafe { libc::sigaction(signal, &raw const action, null_mut()) };
        assert_eq!(rc, 0, "sigaction");
    }
}

/// The dispositions of both signals.
fn in_place() -> [usize; 2] {
    SIGNALS.map(|signal| {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: room for one action; nothing is changed.
        let rc = unsafe { libc::sigaction(signal, null(), &raw mut action) };
        assert_eq!(rc, 0, "sigaction");
        action.sa_sigaction
    })
}

/// Regions to revoke by every verb.
struct World {
    region: Option<Region>,
    mapping: Mapping,
    group: ResetGroup,
    device: PciDevice,
    bar: Mapping,
    /// Built later than the others.
    built: Option<Region>,
    /// Of a region that is disabled from the start.
    disabled: Mapping,
    _off: Region,
    /// Enabled. Its first half has no rights, and the file ends before its second half.
    faulting: Mapping,
    _on: Region,
}

impl World {
    fn new() -> Self {
        let region = Region::builder(LEN).build().expect("a region");
        let off = Region::builder(LEN).disabled().build().expect("a region");
        let file = memfd_create(c"truncated", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(&file, i64::try_from(LEN).expect("small")).expect("it can grow");
        let backing = Backing::file(file.as_fd(), 0).expect("a descriptor");
        let on = Region::builder(LEN).backing(backing).build().expect("a region");
        let faulting = on.map(MapOptions::new()).expect("it maps");
        faulting.protect(0..HALF, Prot::None).expect("fewer rights");
        ftruncate(&file, i64::try_from(HALF).expect("small")).expect("it can shrink");
        let device = PciDevice::builder(0x1234, 0x11e8).bar(0, Bar::memory(LEN as u64)).build().expect("a device");
        device.write(Space::Config, COMMAND, &[2, 0][..]).expect("a command register");
        Self {
            mapping: region.map(MapOptions::new()).expect("it maps"),
            group: ResetGroup::new([&region]),
            bar: device.map(BAR, MapOptions::new()).expect("it maps"),
            disabled: off.map(MapOptions::new()).expect("it maps"),
            region: Some(region),
            built: None,
            device,
            _off: off,
            faulting,
            _on: on,
        }
    }

    fn region(&self) -> &Region {
        self.region.as_ref().expect("not dropped yet")
    }

    fn subscribe(&self, notifier: &Arc<impl InvalidateNotifier + 'static>) -> [Subscription; 2] {
        let bar = self.device.region(BAR).expect("a BAR");
        [self.region(), bar].map(|region| region.subscribe(0..LEN, Arc::clone(notifier) as _))
    }
}

/// Puts the handlers back, and returns a mapping that is revoked from then on.
type Change = fn(&mut World) -> &Mapping;

fn build(world: &mut World) -> &Mapping {
    // Kept, because dropping a region puts the handlers back too.
    world.built = Some(Region::builder(LEN).build().expect("a region"));
    &world.disabled
}

const DISABLE: [Change; 3] = [
    |world| {
        assert!(world.region().disable().expect("no guard and no pin"));
        &world.mapping
    },
    |world| {
        assert!(world.region().try_disable().expect("no guard and no pin"));
        &world.mapping
    },
    |world| {
        assert!(world.region().disable_timeout(PATIENCE).expect("no guard and no pin"));
        &world.mapping
    },
];

const DISABLE_GROUP: [Change; 3] = [
    |world| {
        assert!(world.group.disable().expect("no guard and no pin"));
        &world.mapping
    },
    |world| {
        assert!(world.group.try_disable().expect("no guard and no pin"));
        &world.mapping
    },
    |world| {
        assert!(world.group.disable_timeout(PATIENCE).expect("no guard and no pin"));
        &world.mapping
    },
];

fn clear_memory_bit(world: &mut World) -> &Mapping {
    world.device.write(Space::Config, COMMAND, &[0, 0][..]).expect("a command register");
    &world.bar
}

fn drop_region(world: &mut World) -> &Mapping {
    world.region = None;
    &world.mapping
}

fn is_refused(mapping: &Mapping) {
    let read = mapping.read::<u32>(8);
    assert!(matches!(read, Err(AccessError::Disabled { .. } | AccessError::Gone { .. })), "{read:?}");
}

/// An access to a revoked mapping looks at the state first, and faults only in a race. These accesses reach the memory
/// and raise SIGSEGV and SIGBUS each time.
fn both_signals_are_recovered_from(mapping: &Mapping) {
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Protected { offset: 0 }));
    assert_eq!(mapping.read::<u32>(HALF), Err(AccessError::NoMemory { offset: HALF }));
}

/// Checks, in a process of its own, that each change puts the crate's handlers back in front of each of the strangers.
fn puts_back(changes: &[Change]) {
    let child = alone(|| {
        signal::install().expect("sigaction");
        let ours = in_place();
        for (change, stranger) in changes.iter().flat_map(|change| strangers().map(|stranger| (change, stranger))) {
            let mut world = World::new();
            displace(stranger, 0);
            assert_ne!(in_place(), ours);
            let revoked = change(&mut world);
            assert_eq!(in_place(), ours, "in front of {stranger:#x}");
            is_refused(revoked);
            both_signals_are_recovered_from(&world.faulting);
        }
    });
    child.well();
}

#[test]
fn building_a_region_puts_the_handlers_back_in_front() {
    puts_back(&[build]);
}

#[test]
fn disabling_a_region_puts_the_handlers_back_in_front() {
    puts_back(&DISABLE);
}

#[test]
fn disabling_a_group_puts_the_handlers_back_in_front() {
    puts_back(&DISABLE_GROUP);
}

#[test]
fn clearing_a_devices_memory_bit_puts_the_handlers_back_in_front() {
    puts_back(&[clear_memory_bit]);
}

#[test]
fn dropping_a_region_puts_the_handlers_back_in_front() {
    puts_back(&[drop_region]);
}

/// Records the dispositions when it is told of a revocation.
#[derive(Default)]
struct Looks(Mutex<Vec<[usize; 2]>>);

impl InvalidateNotifier for Looks {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.lock().expect("a log").push(in_place());
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

/// Otherwise a sandbox that refuses sigaction(2) would fail a revocation after its subscribers have been told.
#[test]
fn the_handlers_are_back_before_a_subscriber_is_told() {
    let child = alone(|| {
        signal::install().expect("sigaction");
        let ours = in_place();
        for change in DISABLE.iter().chain(&DISABLE_GROUP).chain(&[clear_memory_bit as Change]) {
            let mut world = World::new();
            let looks = Arc::new(Looks::default());
            let _subscribed = world.subscribe(&looks);
            displace(libc::SIG_DFL, 0);
            change(&mut world);
            assert_eq!(*looks.0.lock().expect("a log"), [ours]);
        }
    });
    child.well();
}

/// Installs a handler of its own when it is told of a revocation.
struct Displaces(usize);

impl InvalidateNotifier for Displaces {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        displace(self.0, 0);
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

#[test]
fn handlers_that_are_displaced_during_the_change_are_put_back_too() {
    let child = alone(|| {
        signal::install().expect("sigaction");
        let ours = in_place();
        for change in DISABLE.iter().chain(&DISABLE_GROUP).chain(&[clear_memory_bit as Change]) {
            for stranger in strangers() {
                let mut world = World::new();
                let _subscribed = world.subscribe(&Arc::new(Displaces(stranger)));
                let revoked = change(&mut world);
                assert_eq!(in_place(), ours, "in front of {stranger:#x}");
                is_refused(revoked);
                both_signals_are_recovered_from(&world.faulting);
            }
        }
    });
    child.well();
}

#[test]
fn after_the_promise_of_own_handlers_they_are_left_alone() {
    let child = alone(|| {
        signal::own_handlers().expect("before the first region");
        let theirs = own as extern "C" fn(_, _, _) as usize;
        displace(theirs, libc::SA_SIGINFO);
        let changes = [build as Change, clear_memory_bit, drop_region];
        for change in changes.iter().chain(&DISABLE).chain(&DISABLE_GROUP) {
            let mut world = World::new();
            let revoked = change(&mut world);
            assert_eq!(in_place(), [theirs; 2]);
            let before = CALLS.load(SeqCst);
            is_refused(revoked);
            both_signals_are_recovered_from(&world.faulting);
            assert!(!RECOVERS || CALLS.load(SeqCst) > before, "the process's own handler was called");
        }
    });
    child.well();
}
