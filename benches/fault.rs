//! The cost of one page fault: resolved by a monitor, by the faulting thread itself, and by the alternatives.
//!
//! A fault is a store to a page of 4 KiB of shared memory that exists but is not mapped. The bench needs two CPUs.
//! `free` leaves the two threads to the scheduler, `pinned` keeps both on one CPU, and `apart` on two. Where the
//! scheduler puts a woken handler differs between kernels and with the load, so `plain_free` is close to the one or to
//! the other.
#![expect(unsafe_code, reason = "raw mappings and a raw signal handler to compare with")]

#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use revocable_mmio::{FaultAround, MapOptions, Mapping, Monitor, Region, Strategy, Support};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::raw::{Bytes, Map, PAGE, memfd};
use support::{Contest, Ratios, Samples, pick, skip, uffd};

const PAGES: usize = 512;
const LEN: usize = PAGES * PAGE;
/// Faults in a turn.
const TURN: u64 = 64;

fn main() {
    if !Support::probe().userfaultfd() {
        skip("fault", "no userfaultfd for this process");
        return;
    }
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    one_fault(&mut samples);
    walk(&mut samples);
    samples.table("one 4 KiB fault, and per page of a walk");
    idle(&mut ratios);
    for (of, to, at_most) in [
        ("monitor_free", "plain_free", Some(1.05)),
        ("monitor_pinned", "plain_pinned", Some(1.05)),
        ("monitor_apart", "plain_apart", Some(1.05)),
        ("monitor_free", "kernel_minor", None),
        ("self_resolved", "mprotect_sigsegv", Some(1.1)),
        ("self_resolved", "plain_free", None),
        ("self_resolved", "monitor_apart", None),
    ] {
        ratios.of(&samples, &format!("fault.{of}/{to}"), of, to, at_most);
    }
    let (of, to) = ("walk: touch_restored", "walk: kernel_minor");
    ratios.of(&samples, "fault.touch_restored/kernel_minor", of, to, Some(0.5));
    ratios.print();
}

fn one_fault(samples: &mut Samples) {
    let every = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this thread");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| every.is_set(*cpu).unwrap_or(false));
    let one = only(cpus.next().expect("a CPU"));
    let other = cpus.next().map(only);
    let place = |cpus: CpuSet| move || sched_setaffinity(Pid::from_raw(0), &cpus).expect("CPUs that were ours before");
    let (free, pinned) = (place(every), place(one));

    // To each its own pages, as a region has: what another has touched just before would be in the caches.
    let file = || memfd(LEN, 0).expect("2 MiB");
    let minor = Map::new(file().as_fd(), LEN, PAGE);
    let protected = Map::new(file().as_fd(), LEN, PAGE);
    let plain = || uffd::served(&file(), LEN);
    // A thread inherits the CPUs of the thread that starts it.
    let both = || (plain(), monitored(MapOptions::new()));
    let both_free = both();
    pinned();
    let both_pinned = both();
    let both_apart = other.map(|other| {
        place(other)();
        both()
    });
    free();
    let own = monitored(MapOptions::new().accessors_only());
    // After the crate has installed its handlers, so that this handler is called first.
    unprotect_on_sigsegv(&protected);

    let mut contest = Contest::new("fault", Duration::from_micros(300));
    contest.each("kernel_minor", TURN, |n, report| {
        faults(n, report, || minor.advise(libc::MADV_DONTNEED).expect("own memory"), |at| minor.bytes().store(at, 1));
    });
    contest.each("mprotect_sigsegv", TURN, |n, report| {
        faults(n, report, || protected.protect(libc::PROT_NONE), |at| protected.bytes().store(at, 1));
    });
    pair(&mut contest, "free", &both_free, &free, every);
    pair(&mut contest, "pinned", &both_pinned, &pinned, every);
    contest.each("self_resolved", TURN, |n, report| {
        faults(n, report, || zap(&own.0), |at| own.1.write(at, 1u8).expect("an enabled region"));
    });
    // The slow ones last: after them the caches are cold.
    if let Some(both) = &both_apart {
        pair(&mut contest, "apart", both, &pinned, every);
    }
    contest.run(pick(400, 12), samples);
    for (region, _) in [&both_free.1, &both_pinned.1, &own] {
        assert!(region.stats().faults_mapped >= TURN, "this crate resolved them");
    }
    contest.criterion();
}

/// A plain loop's mapping, and a monitor's.
type Both = (&'static Map, (Region, Mapping));

/// The two as neighbours. `place` gives the faulting thread its CPUs, which are `every` otherwise.
fn pair<'a>(contest: &mut Contest<'a>, name: &str, both: &'a Both, place: &'a dyn Fn(), every: CpuSet) {
    let (plain, (region, mapping)) = both;
    let placed = move |n, report: &mut dyn FnMut(u64, Duration), arm: &dyn Fn(), bytes: Bytes| {
        place();
        faults(n, report, arm, |at| bytes.store(at, 1));
        sched_setaffinity(Pid::from_raw(0), &every).expect("as before");
    };
    contest.each(&format!("plain_{name}"), TURN, move |n, report| {
        placed(n, report, &|| plain.advise(libc::MADV_DONTNEED).expect("own memory"), plain.bytes());
    });
    let bytes = Bytes::of(mapping);
    contest.each(&format!("monitor_{name}"), TURN, move |n, report| placed(n, report, &|| zap(region), bytes));
}

/// `n` faults, timed one by one. `arm` unmaps all pages.
fn faults(n: u64, report: &mut dyn FnMut(u64, Duration), arm: impl Fn(), touch: impl Fn(usize)) {
    let mut left = n;
    while left > 0 {
        arm();
        for at in (0..LEN).step_by(PAGE).take(usize::try_from(left).unwrap_or(PAGES)) {
            let since = Instant::now();
            touch(at);
            report(1, since.elapsed());
            left -= 1;
        }
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU's number");
    set
}

fn zap(region: &Region) {
    assert!(region.disable().expect("nothing is in the way"));
    assert!(region.enable().expect("nothing is in the way"));
}

/// A region with a monitor of its own, in which one fault maps one page.
fn monitored(options: MapOptions) -> (Region, Mapping) {
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let region = Region::builder(LEN).strategy(Strategy::Zap).monitor(monitor).fault_around(FaultAround::Pages(1));
    let region = region.build().expect("a region");
    populate(&region);
    let mapping = region.map(options).expect("a mapping");
    (region, mapping)
}

fn populate(region: &Region) {
    for at in (0..region.len()).step_by(PAGE) {
        region.owner().write(at, 1u8).expect("inside the region");
    }
}

static PROTECTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn unprotect(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: si_addr is set for SIGSEGV.
    let addr = unsafe { info.si_addr() }.addr();
    let start = PROTECTED.load(Ordering::Relaxed);
    if !(start..start + LEN).contains(&addr) {
        std::process::abort();
    }
    let page = std::ptr::without_provenance_mut(addr & !(PAGE - 1));
    // SAFETY: a page of the bench's own mapping.
    unsafe { libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
}

fn unprotect_on_sigsegv(map: &Map) {
    PROTECTED.store(map.addr(), Ordering::Relaxed);
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = unprotect;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: a live sigaction, with a handler of the right type.
    let rc = unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) };
    assert_eq!(rc, 0);
}

/// Touches a whole region page by page after it was restored, beside the same with the kernel's own faults.
fn walk(samples: &mut Samples) {
    let len = pick(128 << 20, 32 << 20);
    let pages = (len / PAGE) as u64;
    let region = Region::builder(len).strategy(Strategy::Zap).build().expect("a region");
    populate(&region);
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    let bytes = Bytes::of(&mapping);
    let file = memfd(len, 0).expect("memory");
    let plain = Map::new(file.as_fd(), len, 2 << 20);
    let timed = |report: &mut dyn FnMut(u64, Duration), arm: &dyn Fn(), touch: &dyn Fn()| {
        arm();
        let since = Instant::now();
        touch();
        report(pages, since.elapsed());
    };
    let arm_plain = || plain.advise(libc::MADV_DONTNEED).expect("own memory");
    let load_all = |bytes: Bytes| (0..len).step_by(PAGE).for_each(|at| assert_eq!(bytes.load(at), 1));
    let mut contest = Contest::new("walk", Duration::from_micros(300));
    contest.each("walk: kernel_minor", 1, |_, report| timed(report, &arm_plain, &|| plain.bytes().touch(PAGE)));
    contest.each("walk: touch_restored", 1, |_, report| timed(report, &|| zap(&region), &|| bytes.touch(PAGE)));
    contest.each("walk: loads, kernel_minor", 1, |_, report| {
        timed(report, &arm_plain, &|| load_all(plain.bytes()));
    });
    contest.each("walk: loads, touch_restored", 1, |_, report| timed(report, &|| zap(&region), &|| load_all(bytes)));
    contest.run(pick(12, 4), samples);
}

/// An idle monitor sleeps.
fn idle(ratios: &mut Ratios) {
    let (region, mapping) = monitored(MapOptions::new());
    zap(&region);
    Bytes::of(&mapping).touch(PAGE);
    thread::sleep(Duration::from_millis(5));
    let (since, before) = (Instant::now(), cpu_time());
    thread::sleep(Duration::from_millis(200));
    let share = (cpu_time() - before).as_secs_f64() / since.elapsed().as_secs_f64();
    ratios.add("fault.idle_monitor_cpu/cpu", share, Some(0.005));
}

/// The CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
