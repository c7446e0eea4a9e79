//! The cost of revoking and giving back, by size and by strategy, beside the alternatives. Also whether other mappings
//! make it slower.
//!
//! At least one other thread of the process runs all the time, so that no TLB flush stays on one CPU. All mappings are
//! of one file whose pages all exist, and all their page-table entries are set before each revocation. The rivals
//! revoke nothing reliably: after `dontneed` the kernel maps the pages again at the next access, and after `munmap` any
//! code may get the addresses.
//!
//! A full run takes 5 GiB of memory. With `REVOCABLE_BENCH_SVG=FILE` it draws its plot there.

#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use revocable_mmio::{Backing, MapOptions, Mapping, Region, Strategy};
use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::raw::{Bytes, Map, PAGE, memfd, process_madvise};
use support::{Contest, Ratios, Samples, pick, plot, short, skip};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const HUGE: usize = 2 * MIB;
/// MADV_GUARD_INSTALL and MADV_GUARD_REMOVE, for files since Linux 6.15.
const GUARD_INSTALL: libc::c_int = 102;
const GUARD_REMOVE: libc::c_int = 103;

fn main() {
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    let over = AtomicBool::new(false);
    // Starts the shared monitor before this thread binds itself to a CPU, which the monitor would inherit.
    let _early = region(Strategy::Zap, &memfd(PAGE, 0).expect("a page"), PAGE);
    let cpus = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this thread");
    let mut each = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu) == Ok(true));
    let (this, other) = (each.next(), each.next());
    bind(this);
    thread::scope(|scope| {
        scope.spawn(|| {
            bind(other);
            while !over.load(Ordering::Relaxed) {
                black_box((0..1000).fold(0_u64, |sum, i| black_box(sum + i)));
            }
        });
        by_size(&mut samples);
        others(&mut ratios);
        making(&mut ratios);
        batch(&mut ratios);
        hugetlb(&mut samples);
        criterion();
        over.store(true, Ordering::Relaxed);
    });
    samples.table("disable, enable, enable and touch every page");
    conclude(&samples, &mut ratios);
    if let (Ok(file), false) = (std::env::var("REVOCABLE_BENCH_SVG"), short()) {
        std::fs::write(&file, plot::plot(&samples)).expect("the plot's file");
        println!("plot {file}");
    }
    ratios.print();
}

/// Keeps the calling thread on one CPU, so that each revocation has to flush another CPU's TLB, too.
fn bind(cpu: Option<usize>) {
    let mut one = CpuSet::new();
    if cpu.is_some_and(|cpu| one.set(cpu).is_ok()) {
        sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU that was ours before");
    }
}

fn conclude(samples: &Samples, ratios: &mut Ratios) {
    let mut ratio = |name: &str, of: &str, to: &str, at_most| {
        ratios.of(samples, &format!("revoke.{name}"), of, to, at_most);
    };
    ratio("detach_1g/dontneed_1g", "disable detach 1g", "disable dontneed 1g", Some(0.005));
    ratio("detach_4g/detach_2m", "disable detach 4g", "disable detach beside 4g: 2m", Some(3.0));
    let touch = |strategy: &str| format!("enable+touch {strategy} 1g");
    ratio("detach_enable_touch_1g/zap_enable_touch_1g", &touch("detach"), &touch("zap"), Some(0.1));
    ratio("detach_enable_touch_1g/touch_1g", &touch("detach"), "touch detach 1g", None);
    for rival in ["zap", "replace", "mprotect", "munmap", "guard"] {
        let (of, to) = (format!("disable {rival} 1g"), "disable dontneed 1g");
        ratio(&format!("{rival}_1g/dontneed_1g"), &of, to, None);
    }
    ratio("detach_16m/dontneed_16m", "disable detach 16m", "disable dontneed 16m", None);
    // Not beside the rivals: mappings of one hugetlb file share page tables where they can (`huge_pmd_share`), so that
    // dropping those of one costs nothing. A mapping that a userfaultfd watches shares none.
    ratio("zap_1g_hugetlb/zap_1g", "disable zap 1g huge", "disable zap 1g", None);
    ratio("replace_1g_hugetlb/replace_1g", "disable replace 1g huge", "disable replace 1g", None);
}

/// A memory that can be revoked.
struct Subject<'a> {
    name: &'static str,
    bytes: Bytes,
    disable: Box<dyn Fn() + 'a>,
    enable: Box<dyn Fn() + 'a>,
}

impl Subject<'_> {
    /// One round, from all pages mapped to all pages mapped.
    fn measure(&self, size: &str, page: usize, samples: &mut Samples) {
        let Self { name, bytes, .. } = self;
        let since = Instant::now();
        (self.disable)();
        samples.record(&format!("disable {name} {size}"), 1, since.elapsed());
        let since = Instant::now();
        (self.enable)();
        samples.record(&format!("enable {name} {size}"), 1, since.elapsed());
        bytes.touch(page);
        samples.record(&format!("enable+touch {name} {size}"), 1, since.elapsed());
        // The cost of touching alone: misses of the TLB and of the caches.
        let since = Instant::now();
        bytes.touch(page);
        samples.record(&format!("touch {name} {size}"), 1, since.elapsed());
    }
}

fn by_size(samples: &mut Samples) {
    let sizes: &[(&str, usize)] = pick(
        &[("2m", 2 * MIB), ("16m", 16 * MIB), ("64m", 64 * MIB), ("128m", 128 * MIB), ("1g", GIB)],
        &[("2m", 2 * MIB), ("16m", 16 * MIB)],
    );
    let all = [Strategy::Detach, Strategy::Replace, Strategy::Zap];
    for (name, len) in sizes {
        one_size(name, *len, (0, PAGE), &all, samples);
    }
    if !short() {
        smallest_and_largest(samples);
    }
}

/// The two in turns, because the cost of flushing other CPUs changes with their load.
fn smallest_and_largest(samples: &mut Samples) {
    let file = memfd(4 * GIB, 0).expect("memory");
    let pair =
        [("beside 4g: 2m", 2 * MIB), ("4g", 4 * GIB)].map(|(size, len)| (size, region(Strategy::Detach, &file, len)));
    pair.iter().for_each(|(_, (_, mapping))| Bytes::of(mapping).touch(PAGE));
    for _ in 0..12 {
        for (size, pair) in &pair {
            subject(pair).measure(size, PAGE, samples);
        }
    }
}

fn subject((region, mapping): &(Region, Mapping)) -> Subject<'_> {
    Subject {
        name: match region.strategy() {
            Strategy::Detach => "detach",
            Strategy::Replace => "replace",
            _ => "zap",
        },
        bytes: Bytes::of(mapping),
        disable: Box::new(|| assert!(region.disable().expect("nothing is in the way"))),
        enable: Box::new(|| assert!(region.enable().expect("nothing is in the way"))),
    }
}

/// All subjects of one size, in turns. `(flags, page)` is the kind of memory.
fn one_size(
    size: &str,
    len: usize,
    (flags, page): (libc::c_uint, usize),
    strategies: &[Strategy],
    samples: &mut Samples,
) {
    let file = memfd(len, flags).expect("memory");
    let regions: Vec<_> = strategies.iter().map(|strategy| region(*strategy, &file, len)).collect();
    let maps: Vec<_> = (0..4).map(|_| Map::new(file.as_fd(), len, page.max(len.min(GIB)))).collect();
    let mut subjects: Vec<_> = regions.iter().map(subject).collect();
    subjects.extend(plain(&maps, file.as_fd()));
    for subject in &subjects {
        subject.bytes.touch(page);
    }
    let rounds = pick(if len >= GIB { 9 } else { 25 }, 7);
    for round in 0..rounds {
        for subject in &subjects {
            // The first round warms up.
            let mut nothing = Samples::default();
            subject.measure(size, page, if round == 0 { &mut nothing } else { &mut *samples });
        }
    }
}

/// The alternatives without this crate.
fn plain<'a>(maps: &'a [Map], file: std::os::fd::BorrowedFd<'a>) -> Vec<Subject<'a>> {
    let [dontneed, mprotect, munmap, guard] = maps else { unreachable!("four maps") };
    let subject = |name, map: &Map, disable: Box<dyn Fn() + 'a>, enable: Box<dyn Fn() + 'a>| Subject {
        name,
        bytes: map.bytes(),
        disable,
        enable,
    };
    let mut subjects = vec![
        subject(
            "dontneed",
            dontneed,
            Box::new(|| dontneed.advise(libc::MADV_DONTNEED).expect("own memory")),
            Box::new(|| ()),
        ),
        subject(
            "mprotect",
            mprotect,
            Box::new(|| mprotect.protect(libc::PROT_NONE)),
            Box::new(|| mprotect.protect(libc::PROT_READ | libc::PROT_WRITE)),
        ),
        subject("munmap", munmap, Box::new(|| munmap.unmap()), Box::new(move || munmap.fill(file))),
    ];
    match guard.advise(GUARD_INSTALL) {
        Ok(()) => {
            guard.advise(GUARD_REMOVE).expect("what was installed");
            subjects.push(subject(
                "guard",
                guard,
                Box::new(|| guard.advise(GUARD_INSTALL).expect("as before")),
                Box::new(|| guard.advise(GUARD_REMOVE).expect("as before")),
            ));
        }
        Err(e) => println!("no MADV_GUARD_INSTALL here: {e}"),
    }
    subjects
}

fn region(strategy: Strategy, file: &OwnedFd, len: usize) -> (Region, Mapping) {
    let fd = file.try_clone().expect("a descriptor");
    let region = Region::builder(len).strategy(strategy).backing(Backing::File { fd, offset: 0, device: None });
    let region = region.build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    (region, mapping)
}

/// One region's changes while there are many others.
fn others(ratios: &mut Ratios) {
    let file = memfd(2 * MIB, 0).expect("2 MiB");
    let one = memfd(PAGE, 0).expect("a page");
    let subjects = [Strategy::Detach, Strategy::Zap].map(|strategy| region(strategy, &file, 2 * MIB));
    let mut samples = Samples::default();
    let measure = |stage: &str, samples: &mut Samples| {
        for _ in 0..pick(400, 40) {
            for (region, mapping) in &subjects {
                Bytes::of(mapping).touch(PAGE);
                let since = Instant::now();
                assert!(region.disable().expect("nothing is in the way"));
                let name = format!("disable 2m {}, {stage}", region.strategy());
                samples.record(&name, 1, since.elapsed());
                assert!(region.enable().expect("nothing is in the way"));
            }
        }
    };
    measure("alone", &mut samples);
    let mut regions = Vec::new();
    for more in pick([100, 1000], [20, 100]) {
        regions.extend((regions.len()..more).map(|_| region(Strategy::Zap, &one, PAGE)));
        measure(&format!("{more} other regions"), &mut samples);
    }
    let mappings: usize = pick(10_000, 500);
    let per_region = mappings / 10;
    let holders: Vec<_> = (0..10).map(|_| region(Strategy::Detach, &one, PAGE)).collect();
    let map = |(region, _): &(Region, Mapping)| region.map(MapOptions::new()).expect("a mapping");
    let many: Vec<Mapping> = holders.iter().flat_map(|h| (0..per_region).map(move |_| map(h))).collect();
    measure(&format!("{} other mappings", many.len()), &mut samples);
    let stages = samples.names().len() / 2;
    samples.table("disable of one region beside many");
    for strategy in ["detach", "zap"] {
        let at = |stage: usize| samples.names()[2 * stage + usize::from(strategy == "zap")].as_str();
        for stage in 1..stages {
            let what = at(stage).rsplit(", ").next().unwrap_or_default().replace(' ', "_");
            ratios.of(&samples, &format!("revoke.{strategy}_beside_{what}/alone"), at(stage), at(0), Some(1.25));
        }
    }
}

/// What it takes to make a region, and a mapping of it, while there are many others.
fn making(ratios: &mut Ratios) {
    let one = memfd(PAGE, 0).expect("a page");
    let others: Vec<_> = (0..pick(5_000, 200)).map(|_| region(Strategy::Detach, &one, PAGE)).collect();
    let mut samples = Samples::default();
    for _ in 0..pick(400, 40) {
        let since = Instant::now();
        let region = Region::builder(PAGE).strategy(Strategy::Detach).build().expect("a region");
        samples.record("make a region", 1, since.elapsed());
        let since = Instant::now();
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        samples.record("make a mapping", 1, since.elapsed());
        drop((mapping, region));
    }
    samples.table(&format!("making one beside {} others", others.len()));
    for what in ["make a region", "make a mapping"] {
        let took = samples.p50(what).unwrap_or(f64::NAN);
        ratios.add(&format!("revoke.{}_us", what.replace(' ', "_")), took / 1e3, Some(15.0));
    }
}

/// Many mappings zapped one by one, and by one call.
fn batch(ratios: &mut Ratios) {
    const MAPS: usize = 64;
    let file = memfd(HUGE, 0).expect("2 MiB");
    let maps: Vec<_> = (0..MAPS).map(|_| Map::new(file.as_fd(), HUGE, HUGE)).collect();
    if let Err(e) = process_madvise(&maps, libc::MADV_DONTNEED) {
        return skip("process_madvise", &format!("not for this process's own memory (before Linux 6.13): {e}"));
    }
    // The mapped pages decide how much is flushed: all of them, or one of each mapping.
    let mut samples = Samples::default();
    for (what, step) in [("full", PAGE), ("sparse", HUGE)] {
        for _ in 0..pick(40, 8) {
            for one_call in [false, true] {
                maps.iter().for_each(|map| map.bytes().touch(step));
                let since = Instant::now();
                if one_call {
                    process_madvise(&maps, libc::MADV_DONTNEED).expect("as before");
                } else {
                    maps.iter().for_each(|map| map.advise(libc::MADV_DONTNEED).expect("own memory"));
                }
                let name = format!("64 x 2m {what}, {}", if one_call { "process_madvise" } else { "madvise each" });
                samples.record(&name, 1, since.elapsed());
            }
        }
        let name = |how: &str| format!("64 x 2m {what}, {how}");
        let ratio = format!("revoke.process_madvise_{what}/madvise_{what}");
        ratios.of(&samples, &ratio, &name("process_madvise"), &name("madvise each"), None);
    }
    samples.table("64 mappings zapped");
}

/// The same with huge pages of 2 MiB, borrowed from the system for this time.
fn hugetlb(samples: &mut Samples) {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let sizes: &[(&str, usize)] =
        pick(&[("16m huge", 16 * MIB), ("128m huge", 128 * MIB), ("1g huge", GIB)], &[("16m huge", 16 * MIB)]);
    let most = sizes.iter().map(|(_, len)| len / HUGE).max().unwrap_or(0);
    let pool = || std::fs::read_to_string(POOL).ok().and_then(|pages| pages.trim().parse::<usize>().ok());
    let Some(before) = pool() else { return skip("hugetlb", "no huge pages of 2 MiB in this kernel") };
    let _ = std::fs::write(POOL, (before + most).to_string());
    if pool().is_some_and(|now| now >= before + most) {
        for (name, len) in sizes {
            one_size(name, *len, (libc::MFD_HUGETLB, HUGE), &[Strategy::Zap, Strategy::Replace], samples);
        }
    } else {
        skip("hugetlb", "huge pages of 2 MiB cannot be reserved by this process");
    }
    // Returns the number of pages that were added, since other processes may borrow some too.
    let _ = std::fs::write(POOL, pool().unwrap_or(before + most).saturating_sub(most).to_string());
}

fn criterion() {
    if short() {
        return;
    }
    let len = 16 * MIB;
    let file = memfd(len, 0).expect("16 MiB");
    let regions = [Strategy::Detach, Strategy::Replace, Strategy::Zap].map(|strategy| region(strategy, &file, len));
    let mut contest = Contest::new("disable 16m", Duration::ZERO);
    for (region, mapping) in &regions {
        contest.each(&region.strategy().to_string(), 1, |n, report| {
            for _ in 0..n {
                Bytes::of(mapping).touch(PAGE);
                let since = Instant::now();
                assert!(region.disable().expect("nothing is in the way"));
                report(1, since.elapsed());
                assert!(region.enable().expect("nothing is in the way"));
            }
        });
    }
    contest.criterion();
}
