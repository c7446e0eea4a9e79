//! A monitor's throughput with 1, 2 and 4 threads that fault, beside a plain loop of poll, read and UFFDIO_CONTINUE
//! over the same kind of memory.
//!
//! `cargo bench --bench monitor`. Ends with a table, and a line `ratio NAME VALUE` for each comparison.
#![expect(unsafe_code, reason = "the plain loop is made of system calls; the faults are loads by address")]

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as nr;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::{FaultAround, MapOptions, Mapping, Monitor, Region, Strategy, Support};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Pages that each thread faults in, per round.
const PAGES: usize = 512;
const MOST_THREADS: usize = 4;
const LEN: usize = MOST_THREADS * PAGES * PAGE;

/// Each of `threads` threads loads from its own pages, one after the other; how long all took.
fn fault_in(base: usize, threads: usize) -> Duration {
    let start = Barrier::new(threads + 1);
    let mut since = Instant::now();
    thread::scope(|scope| {
        for t in 0..threads {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for page in t * PAGES..(t + 1) * PAGES {
                    // SAFETY: inside the mapping, which outlives the scope; other threads only load.
                    let value = unsafe { std::ptr::with_exposed_provenance::<u64>(base + page * PAGE).read_volatile() };
                    assert_eq!(value, page as u64, "the page's own content");
                }
            });
        }
        start.wait();
        since = Instant::now();
    });
    since.elapsed()
}

/// This crate: a region whose mapping is zapped between the rounds.
struct Ours {
    region: Region,
    mapping: Mapping,
}

impl Ours {
    fn new(monitor_threads: usize) -> Self {
        let monitor = Monitor::with_threads(monitor_threads).expect("a userfaultfd");
        let builder = Region::builder(LEN).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1));
        let region = builder.monitor(monitor).build().expect("a region");
        for page in 0..LEN / PAGE {
            region.owner().write::<u64>(page * PAGE, page as u64).expect("the owner's view");
        }
        let mapping = region.map(MapOptions::new()).expect("it maps");
        Self { region, mapping }
    }

    fn round(&self, threads: usize) -> Duration {
        self.region.disable().expect("nobody is in the way");
        self.region.enable().expect("it comes back");
        let before = self.region.stats().faults_mapped;
        let took = fault_in(self.mapping.as_ptr().expose_provenance(), threads);
        // The last one is counted after its thread has gone on.
        let due = Instant::now() + Duration::from_secs(1);
        let faults = || self.region.stats().faults_mapped - before;
        while faults() < (threads * PAGES) as u64 && Instant::now() < due {
            thread::yield_now();
        }
        assert_eq!(faults(), (threads * PAGES) as u64, "one fault per page");
        took
    }
}

/// The plain loop: everything that has to be, and nothing else.
struct Plain {
    base: usize,
    stop: Arc<AtomicBool>,
    server: Option<thread::JoinHandle<()>>,
}

fn check(rc: libc::c_int) {
    assert!(rc >= 0, "{}", std::io::Error::last_os_error());
}

impl Plain {
    fn new() -> Self {
        let memfd = nix::sys::memfd::memfd_create(c"plain", nix::sys::memfd::MFdFlags::empty()).expect("a memfd");
        nix::unistd::ftruncate(&memfd, LEN as i64).expect("room");
        let map = || memmap2::MmapOptions::new().len(LEN).map_raw(&memfd).expect("it maps");
        let (owner, view) = (map(), map());
        for page in 0..LEN / PAGE {
            // SAFETY: inside the owner's mapping, aligned; nobody else uses it yet.
            unsafe { owner.as_mut_ptr().wrapping_add(page * PAGE).cast::<u64>().write_volatile(page as u64) };
        }
        let fd = userfaultfd();
        let features = (raw::UFFD_FEATURE_MINOR_SHMEM as u64) | (raw::UFFD_FEATURE_EXACT_ADDRESS as u64);
        let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features, ioctls: 0 };
        // SAFETY: the structure of this request.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), nr::UFFDIO_API.into(), &mut api) });
        let base = view.as_mut_ptr().expose_provenance();
        let range = raw::uffdio_range { start: base as u64, len: LEN as u64 };
        let mut register = raw::uffdio_register { range, mode: raw::UFFDIO_REGISTER_MODE_MINOR.into(), ioctls: 0 };
        // SAFETY: as above; the range is this benchmark's.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), nr::UFFDIO_REGISTER.into(), &mut register) });
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let server = thread::spawn(move || {
            let _keep = (owner, view);
            while !stopping.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(50u8)).expect("poll") == 0 {
                    continue;
                }
                let mut message = std::mem::MaybeUninit::<raw::uffd_msg>::uninit();
                // SAFETY: room for one message.
                let n = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), size_of::<raw::uffd_msg>()) };
                if usize::try_from(n).ok() != Some(size_of::<raw::uffd_msg>()) {
                    continue;
                }
                // SAFETY: the kernel wrote a whole message.
                let message = unsafe { message.assume_init() };
                // SAFETY: page faults are the only event asked for.
                let address = unsafe { message.arg.pagefault.address };
                let range = raw::uffdio_range { start: address & !(PAGE as u64 - 1), len: PAGE as u64 };
                let mut resolve = raw::uffdio_continue { range, mode: 0, mapped: 0 };
                // SAFETY: as above. EEXIST: somebody else's fault on the same page was answered.
                unsafe { libc::ioctl(fd.as_raw_fd(), nr::UFFDIO_CONTINUE.into(), &mut resolve) };
            }
        });
        Self { base, stop, server: Some(server) }
    }

    fn round(&self, threads: usize) -> Duration {
        let at = std::ptr::with_exposed_provenance_mut(self.base);
        // SAFETY: shared memory of this benchmark's: dropping its pages loses nothing.
        check(unsafe { libc::madvise(at, LEN, libc::MADV_DONTNEED) });
        fault_in(self.base, threads)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.server.take().map(thread::JoinHandle::join);
    }
}

fn userfaultfd() -> OwnedFd {
    let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = match device {
        // SAFETY: USERFAULTFD_IOC_NEW takes a number.
        Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), 0xaa00, flags) },
        Err(_) => {
            let flags = flags | raw::UFFD_USER_MODE_ONLY as libc::c_int;
            // SAFETY: takes a number.
            libc::c_int::try_from(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) }).expect("a descriptor")
        }
    };
    check(fd);
    // SAFETY: the kernel gave it to us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn main() {
    if !Support::current().userfaultfd() {
        println!("SKIP: no userfaultfd");
        return;
    }
    let short = std::env::var("REVOCABLE_BENCH").is_ok_and(|v| v == "short");
    let plain = Plain::new();
    let (one, two) = (Ours::new(1), Ours::new(2));
    let mut lines = Vec::new();
    for threads in [1, 2, 4] {
        let rivals: [&dyn Fn() -> Duration; 3] =
            [&|| plain.round(threads), &|| one.round(threads), &|| two.round(threads)];
        let mut rates = [const { Vec::new() }; 3];
        // By turns, so that the machine's noise falls on all alike.
        for _ in 0..if short { 5 } else { 60 } {
            for (round, rates) in rivals.iter().zip(&mut rates) {
                rates.push((threads * PAGES) as f64 / round().as_secs_f64());
            }
        }
        let medians = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        lines.push(format!("| {threads} | {:.0}/s | {:.0}/s | {:.0}/s |", medians[0], medians[1], medians[2]));
        for (name, rate) in [("1", medians[1]), ("2", medians[2])] {
            lines.push(format!("ratio monitor_{name}_vs_plain_{threads}_faulting {:.3}", rate / medians[0]));
        }
        assert!(medians[1] > 0.1 * medians[0], "{threads} faulting: the monitor does {:?} faults a second", medians);
    }
    println!("\n| threads that fault | plain loop | monitor, 1 thread | monitor, 2 threads |\n|---|---|---|---|");
    let (rows, ratios): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line: &String| line.starts_with('|'));
    for line in rows.into_iter().chain(ratios) {
        println!("{line}");
    }
}
