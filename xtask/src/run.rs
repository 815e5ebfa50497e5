//! A running QEMU: its console, its end, and what to do when neither comes.
//!
//! The console is QEMU's standard output, the records are a file. Ctrl-C ends both of us, but where the guest is typed at:
//! there it is the guest's, and Ctrl-] ends both. When time is up, every CPU
//! gets an NMI through QMP: the kernel answers with a report and a failing exit, and only then is QEMU ended.

use crate::{
    apt,
    console::{Console, Symbols},
    qmp::Qmp,
};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

/// Typed to leave a guest that does not end by itself: Ctrl-], as in telnet.
const LEAVE: u8 = 0x1d;
/// How long QEMU may take to quit when told to.
const QUIT: Duration = Duration::from_secs(2);

/// The files through which we talk with QEMU.
pub struct Machine {
    /// Its monitor's socket.
    pub qmp: PathBuf,
    /// What the second serial port writes.
    pub records: PathBuf,
}

impl Machine {
    /// QEMU's words for them.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            "-chardev".into(),
            "stdio,id=console,signal=off".into(),
            "-serial".into(),
            "chardev:console".into(),
            "-chardev".into(),
            format!("file,id=records,path={}", self.records.display()),
            "-serial".into(),
            "chardev:records".into(),
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", self.qmp.display()),
        ]
    }
}

/// When to lose patience.
pub struct Limits {
    /// With the run as a whole.
    pub total: Option<Duration>,
    /// With a console that shows nothing at all.
    pub silence: Option<Duration>,
    /// With the kernel's report after the NMI.
    pub report: Duration,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// QEMU's exit code; `None` when a signal ended it.
    Exit(Option<i32>),
    /// [`Limits::total`] was over.
    TimedOut,
    /// [`Limits::silence`] was over.
    Silent,
}

/// What the reading thread tells.
enum Event {
    /// The first byte.
    Alive,
    /// The console is closed.
    End,
}

/// What is done with the console.
pub struct Watch<'a> {
    /// For the functions in backtraces.
    pub symbols: Symbols,
    /// A file that gets all of it.
    pub log: Option<&'a Path>,
    /// What is typed goes to the guest.
    pub interactive: bool,
    /// Keep it instead of showing it.
    pub quiet: bool,
}

/// Runs `qemu` to its end. Returns that, and the console if it was not shown.
pub fn watch(
    qemu: Command,
    machine: &Machine,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<(Ending, Vec<u8>)> {
    let log = watch
        .log
        .map(|p| File::create(p).with_context(|| format!("cannot write {}", p.display())))
        .transpose()?;
    let input = if watch.interactive {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut qemu = with_parent(qemu);
    let mut child = qemu
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let stdout = child.stdout.take().expect("piped");
    let (sender, events) = mpsc::channel();
    let (console, quiet) = (Console::new(watch.symbols, log), watch.quiet);
    let reader = thread::spawn(move || {
        let mut kept = Vec::new();
        if quiet {
            read_console(stdout, console, &sender, &mut kept)?;
        } else {
            read_console(stdout, console, &sender, &mut io::stdout())?;
        }
        Ok::<_, io::Error>(kept)
    });
    let _raw = watch.interactive.then(RawTerminal::set).flatten();
    let (started, start_typing) = mpsc::channel();
    if let Some(mut to_guest) = child.stdin.take() {
        // Ends with the process: a blocked read of a terminal cannot be called back. What comes before the guest has
        // set up its serial port would be lost.
        let qmp = machine.qmp.clone();
        thread::spawn(move || {
            if start_typing.recv().is_ok() {
                let _ = type_to(&mut to_guest, &qmp);
            }
        });
    }

    let ending = wait(&mut child, &events, &started, machine, limits)?;
    // Whatever was still in the pipe.
    let kept = reader.join().expect("the console does not panic")?;
    Ok((ending, kept))
}

/// What is typed goes to the guest, until [`LEAVE`] is typed: then QEMU is told to quit.
fn type_to(guest: &mut impl Write, qmp: &Path) -> io::Result<()> {
    let (mut input, mut buffer) = (io::stdin().lock(), [0; 256]);
    loop {
        let len = input.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if buffer[..len].contains(&LEAVE) {
            let _ = Qmp::connect(qmp).and_then(|mut qmp| qmp.execute("quit"));
            return Ok(());
        }
        guest.write_all(&buffer[..len])?;
        guest.flush()?;
    }
}

/// The terminal we run in, set to pass on every byte as it is typed, and set back at the end.
struct RawTerminal {
    saved: String,
}

impl RawTerminal {
    /// `None` where standard input is no terminal.
    fn set() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let stty = |words: &[&str]| {
            Command::new("stty")
                .args(words)
                .stdin(Stdio::inherit())
                .output()
                .ok()
        };
        let saved = stty(&["-g"]).filter(|output| output.status.success())?;
        let saved = String::from_utf8(saved.stdout).ok()?.trim().to_string();
        stty(&["-icanon", "-echo", "-isig", "-icrnl", "-ixon", "min", "1"])?;
        eprintln!("Ctrl-] ends the machine");
        Some(Self { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = Command::new("stty")
            .arg(&self.saved)
            .stdin(Stdio::inherit())
            .status();
    }
}

/// `command`, made to end when we do, whatever ends us.
fn with_parent(command: Command) -> Command {
    let Some(setpriv) = apt::find_program("setpriv") else {
        return command;
    };
    let mut wrapped = Command::new(setpriv);
    wrapped
        .args(["--pdeathsig", "TERM", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    wrapped
}

fn read_console(
    mut from: ChildStdout,
    mut console: Console,
    events: &Sender<Event>,
    out: &mut impl Write,
) -> io::Result<()> {
    let (mut buffer, mut alive) = ([0; 4096], false);
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        if !alive {
            alive = true;
            let _ = events.send(Event::Alive);
        }
        console.feed(&buffer[..len], out)?;
        out.flush()?;
    }
    console.end(out)?;
    let _ = events.send(Event::End);
    Ok(())
}

fn wait(
    child: &mut Child,
    events: &Receiver<Event>,
    started: &Sender<()>,
    machine: &Machine,
    limits: &Limits,
) -> Result<Ending> {
    let start = Instant::now();
    let mut silence = limits.silence;
    loop {
        let patience = [silence, limits.total]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Duration::MAX);
        match events.recv_timeout(
            patience
                .saturating_sub(start.elapsed())
                .min(Duration::from_secs(3600)),
        ) {
            Ok(Event::Alive) => {
                silence = None;
                // Nobody listens where nobody types.
                let _ = started.send(());
            }
            Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(Ending::Exit(child.wait()?.code()));
            }
            Err(RecvTimeoutError::Timeout) if start.elapsed() < patience => {}
            Err(RecvTimeoutError::Timeout) if silence == Some(patience) => {
                end(child, machine)?;
                return Ok(Ending::Silent);
            }
            Err(RecvTimeoutError::Timeout) => {
                eprintln!(
                    "\n{} s are over; asking every CPU where it is",
                    patience.as_secs()
                );
                if let Err(error) =
                    Qmp::connect(&machine.qmp).and_then(|mut qmp| qmp.execute("inject-nmi"))
                {
                    eprintln!("QEMU's monitor does not answer: {error:#}");
                } else {
                    let _ = wait_for_end(events, limits.report);
                }
                end(child, machine)?;
                return Ok(Ending::TimedOut);
            }
        }
    }
}

/// Waits for the console's end.
fn wait_for_end(events: &Receiver<Event>, patience: Duration) -> Result<(), RecvTimeoutError> {
    let start = Instant::now();
    loop {
        if let Event::End = events.recv_timeout(patience.saturating_sub(start.elapsed()))? {
            return Ok(());
        }
    }
}

/// Ends QEMU: by request, else by force.
fn end(child: &mut Child, machine: &Machine) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let asked = Qmp::connect(&machine.qmp).and_then(|mut qmp| qmp.execute("quit"));
    let start = Instant::now();
    while asked.is_ok() && start.elapsed() < QUIT {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("cannot end QEMU")?;
    child.wait()?;
    Ok(())
}
