//! A vfio-user server: a PCI device in a process of its own, for QEMU or any other client. The client maps BAR 0, and loses
//! it whenever its driver turns memory off, sends the device to D3hot or resets it, and when the server wants it back.
//!
//! ```text
//! cargo run --example vfio_user -- --socket /tmp/device.sock --every 100
//! qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem ... \
//!     -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/device.sock"}}'
//! ```
//!
//! Nothing that a client sends is believed: a message is at most 64 KiB long, every count and size is checked, and what is
//! no message ends the connection. One client is served at a time; one that is silent keeps its place.

mod connection;
mod device;
mod dma;
mod irqs;
mod message;
mod server;
mod session;

use clap::Parser;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Serves a PCI device to vfio-user clients, one after the other, and prints what happens to it.
#[derive(Parser)]
struct Args {
    /// The Unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Take BAR 0 away after so many milliseconds, give it back after as many, and so on.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,

    /// End after the first client.
    #[arg(long)]
    once: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let listener = listen(&args.socket).map_err(|e| format!("{}: {e}", args.socket.display()))?;
    let since = Instant::now();
    let say = move |what: &str| {
        // A reader that has gone away is no reason to take the device away.
        let _ = writeln!(io::stdout(), "{:>10.3} s  {what}", since.elapsed().as_secs_f64());
    };
    say(&format!("listening on {}", args.socket.display()));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e.into()),
        };
        if let Err(e) = server::serve(stream, args.every.map(Duration::from_millis), &say) {
            say(&format!("no device for this client: {e}"));
        }
        if args.once {
            return Ok(());
        }
    }
}

/// Listens, also where a server that has died has left its socket.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let left_over = UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            if !left_over {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}
