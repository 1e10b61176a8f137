//! Peers that are dead and can't say so.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt;

/// How long a connection may be silent before the system asks the peer whether it is there.
const IDLE: Duration = Duration::from_secs(60);

/// How long it waits for an answer before it asks again, and how often it does.
const INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// How long bytes may be on their way without a sign that they arrived.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// Has the system end a connection whose peer is gone: after two minutes, whether bytes are on their way or not.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    let limit = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, limit)?)
}
