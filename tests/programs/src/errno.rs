//! Error numbers with their names.

macro_rules! errnos {
    ($($name:ident = $nr:literal)+) => {
        /// A Linux error number.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct Errno(pub u16);

        #[allow(missing_docs, reason = "the names are the meaning")]
        impl Errno {
            $(pub const $name: Errno = Errno($nr);)+

            /// The name, or "E?" for a number that the programs never expect.
            pub const fn name(self) -> &'static str {
                match self.0 { $($nr => stringify!($name),)+ _ => "E?" }
            }
        }
    };
}

errnos! {
    EPERM = 1 ENOENT = 2 ESRCH = 3 EINTR = 4 EIO = 5 ENXIO = 6 E2BIG = 7 ENOEXEC = 8 EBADF = 9
    ECHILD = 10 EAGAIN = 11 ENOMEM = 12 EACCES = 13 EFAULT = 14 EBUSY = 16 EEXIST = 17 EXDEV = 18
    ENODEV = 19 ENOTDIR = 20 EISDIR = 21 EINVAL = 22 ENFILE = 23 EMFILE = 24 ENOTTY = 25 ETXTBSY = 26
    EFBIG = 27 ENOSPC = 28 ESPIPE = 29 EROFS = 30 EPIPE = 32 ERANGE = 34 ENAMETOOLONG = 36 ENOSYS = 38
    ENODATA = 61 ENOTSOCK = 88 EAFNOSUPPORT = 97 ENOTEMPTY = 39 ELOOP = 40 EOVERFLOW = 75 EOPNOTSUPP = 95 ETIMEDOUT = 110
}

impl Errno {
    /// The raw result of a call that failed with this error.
    pub const fn raw(self) -> isize {
        -(self.0 as isize)
    }

    /// The error in a raw result, if it is one.
    pub const fn of(result: isize) -> Option<Errno> {
        if result < 0 && result >= -4095 {
            Some(Errno(-result as u16))
        } else {
            None
        }
    }
}
