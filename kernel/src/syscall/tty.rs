//! ioctl: what programs ask of the terminal, and of files in general.

use super::file::get;
use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{self, get_user, put_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use crate::tty;
use task::pids;
use vfs::tty::Termios;

mod request {
    pub const TCGETS: usize = 0x5401;
    pub const TCSETSF: usize = 0x5404;
    pub const TCSBRK: usize = 0x5409;
    pub const TCXONC: usize = 0x540a;
    pub const TCFLSH: usize = 0x540b;
    pub const TIOCSCTTY: usize = 0x540e;
    pub const TIOCGPGRP: usize = 0x540f;
    pub const TIOCSPGRP: usize = 0x5410;
    pub const TIOCOUTQ: usize = 0x5411;
    pub const TIOCGWINSZ: usize = 0x5413;
    pub const TIOCSWINSZ: usize = 0x5414;
    pub const FIONREAD: usize = 0x541b;
    pub const FIONBIO: usize = 0x5421;
    pub const TIOCNOTTY: usize = 0x5422;
    pub const TIOCGSID: usize = 0x5429;
}
use request::*;

/// Bytes of the kernel's `struct termios`.
const TERMIOS: usize = 36;
const _: () = assert!(size_of::<Termios>() == TERMIOS);

pub fn ioctl(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    let (request, at) = (regs.arg::<1>(), regs.arg::<2>());
    match request {
        FIONBIO => {
            file.set_nonblock(get_user::<i32>(at)? != 0);
            Ok(0)
        }
        _ if !file.is_console() => Err(Errno::ENOTTY),
        TCGETS..=TCSETSF => settings(request, at),
        TIOCSCTTY | TIOCGPGRP | TIOCSPGRP | TIOCNOTTY | TIOCGSID => owner(request, at),
        // What is written is out at once.
        TCSBRK | TCXONC => Ok(0),
        TCFLSH => {
            if at > 2 {
                return Err(Errno::EINVAL);
            }
            if at != 1 {
                tty::flush()?;
            }
            Ok(0)
        }
        TIOCOUTQ => Ok(put_user(at, &0i32).map(|()| 0)?),
        FIONREAD => Ok(put_user(at, &(tty::nr_readable() as i32)).map(|()| 0)?),
        TIOCGWINSZ => Ok(put_user(at, &tty::window()).map(|()| 0)?),
        TIOCSWINSZ => {
            tty::set_window(get_user(at)?);
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// The settings, as 36 bytes.
fn settings(request: usize, at: usize) -> SysResult {
    let mut bytes = [0u8; TERMIOS];
    if request == TCGETS {
        let termios = tty::termios();
        let flags = [termios.iflag, termios.oflag, termios.cflag, termios.lflag];
        for (chunk, flags) in bytes.chunks_mut(4).zip(flags) {
            chunk.copy_from_slice(&flags.to_le_bytes());
        }
        bytes[16] = termios.line;
        bytes[17..].copy_from_slice(&termios.cc);
        uaccess::copy_to_user(at, &bytes)?;
        return Ok(0);
    }
    uaccess::copy_from_user(&mut bytes, at)?;
    let word = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|k| bytes[4 * i + k]));
    let mut termios = Termios {
        iflag: word(0),
        oflag: word(1),
        cflag: word(2),
        lflag: word(3),
        ..Termios::new()
    };
    termios.cc.copy_from_slice(&bytes[17..]);
    tty::set_termios(termios, request == TCSETSF)?;
    Ok(0)
}

/// Whose terminal it is, and who is in the foreground.
fn owner(request: usize, at: usize) -> SysResult {
    let viewer = current_ref().pid();
    match request {
        TIOCSCTTY => tty::acquire()?,
        TIOCNOTTY => tty::give_up()?,
        TIOCGPGRP => {
            let (foreground, _) = tty::ids()?;
            put_user(at, &foreground.map_or(0, |pid| pids::nr_in(&pid, viewer)))?;
        }
        TIOCGSID => {
            let (_, session) = tty::ids()?;
            put_user(at, &pids::nr_in(&session, viewer))?;
        }
        _ => {
            let nr: i32 = get_user(at)?;
            if nr < 0 {
                return Err(Errno::EINVAL);
            }
            let group = pids::find_pid(nr as u32, viewer).ok_or(Errno::ESRCH)?;
            tty::set_foreground(&group)?;
        }
    }
    Ok(0)
}
