//! The negotiation with a server: from its greeting to an export that can be used.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use super::agreement::Agreement;
use super::text::appended;
use super::{Address, ClientError};
use crate::protocol::{
    ClientFlags, Command, CommandFlags, ContextQuery, EXPORT_NAME_PADDING, ExportNameReply, Greeting, HandshakeFlags,
    InfoItem, InfoRequest, InfoType, MetaContextId, MetaContextRequest, OptionReply, OptionReplyHeader, OptionRequest,
    ReplyError, ReplyStyle, RequestHeader,
};
use crate::tls::TlsClient;
use crate::transport::Transport;

/// Replies to one option; no server needs so many.
const MAX_REPLIES: usize = 64;

/// How long a server has to take the last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How far a negotiation has come: what a good-bye looks like.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No good-bye would be understood.
    Greeting,
    Options,
    Transmission(ReplyStyle),
}

/// A negotiation under way.
pub(super) struct Handshake<'a> {
    transport: &'a Transport,
    address: &'a Address,
    export: &'a str,
    /// When the server must be done with it.
    deadline: Instant,
    phase: Cell<Phase>,
}

/// How the last reply to an option ended it.
enum Ended {
    Ack(Vec<OptionReply>),
    Refused(ReplyError, String),
}

impl<'a> Handshake<'a> {
    pub(super) fn new(transport: &'a Transport, address: &'a Address, export: &'a str, deadline: Instant) -> Self {
        Self {
            transport,
            address,
            export,
            deadline,
            phase: Cell::new(Phase::Greeting),
        }
    }

    /// Negotiates the best that both sides can do. With `tls`, nothing is told to a server without. A server that is of
    /// no use is told good-bye.
    pub(super) fn run(&self, tls: Option<&TlsClient>) -> Result<Agreement, ClientError> {
        let result = self.negotiate(tls);
        if result.is_err() {
            self.leave();
        }
        result
    }

    /// Says good-bye, so that the server need not wonder. Nobody waits for an answer.
    fn leave(&self) {
        let mut message = Vec::new();
        match self.phase.get() {
            Phase::Greeting => return,
            Phase::Options => OptionRequest::Abort.encode(&mut message),
            Phase::Transmission(style) => {
                let disconnect = RequestHeader {
                    flags: CommandFlags::empty(),
                    command: Command::Disconnect,
                    cookie: 0,
                    offset: 0,
                    length: 0,
                };
                disconnect.encode(style.header_style(), &mut message);
            }
        }
        let _ = self.transport.set_timeouts(Some(LAST_WORD));
        let _ = self.transport.send(&[&message]);
        self.transport.say_goodbye();
    }

    fn negotiate(&self, tls: Option<&TlsClient>) -> Result<Agreement, ClientError> {
        let greeting = self.decoded(Greeting::decode(&self.receive::<{ Greeting::SIZE }>()?))?;
        let fixed = greeting.flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        let mut flags = ClientFlags::empty();
        flags.set(ClientFlags::FIXED_NEWSTYLE, fixed);
        let without_zeroes = greeting.flags.contains(HandshakeFlags::NO_ZEROES);
        flags.set(ClientFlags::NO_ZEROES, without_zeroes);
        self.send(&flags.bits().to_be_bytes())?;
        if !fixed {
            // Such a server knows one option, and has no answer to another.
            return match tls {
                None => self.export_name(without_zeroes, ReplyStyle::Simple, None),
                Some(_) => Err(self.no_tls(String::new())),
            };
        }
        self.phase.set(Phase::Options);
        if let Some(tls) = tls {
            self.start_tls(tls)?;
        }
        let style = self.reply_style()?;
        let allocation = match style {
            ReplyStyle::Simple => None,
            ReplyStyle::Structured | ReplyStyle::Extended => self.allocation()?,
        };
        match self.go(style, allocation)? {
            Some(agreement) => Ok(agreement),
            None => self.export_name(without_zeroes, style, allocation),
        }
    }

    fn start_tls(&self, tls: &TlsClient) -> Result<(), ClientError> {
        match self.option(&OptionRequest::StartTls)? {
            Ended::Ack(_) => {}
            Ended::Refused(_, message) => return Err(self.no_tls(message)),
        }
        let connection = tls.connection();
        let connection = connection.map_err(|error| self.lost(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        self.phase.set(Phase::Greeting);
        let started = self.transport.start_tls(connection, Some(self.deadline));
        started.map_err(|error| self.lost(error))?;
        self.phase.set(Phase::Options);
        Ok(())
    }

    fn reply_style(&self) -> Result<ReplyStyle, ClientError> {
        for (option, style) in [
            (OptionRequest::ExtendedHeaders, ReplyStyle::Extended),
            (OptionRequest::StructuredReply, ReplyStyle::Structured),
        ] {
            if let Ended::Ack(_) = self.option(&option)? {
                return Ok(style);
            }
        }
        Ok(ReplyStyle::Simple)
    }

    /// Chooses the context that tells what is stored, where there is one.
    fn allocation(&self) -> Result<Option<MetaContextId>, ClientError> {
        let query = ContextQuery::Allocation.text();
        let request = MetaContextRequest {
            export: self.export.to_owned(),
            queries: vec![query.clone()],
        };
        let Ended::Ack(replies) = self.option(&OptionRequest::SetMetaContext(request))? else {
            return Ok(None);
        };
        Ok(replies.into_iter().find_map(|reply| match reply {
            OptionReply::MetaContext { id, name } if name == query => Some(id),
            _ => None,
        }))
    }

    /// Chooses the export; `None` if the server does not know this option.
    fn go(&self, style: ReplyStyle, allocation: Option<MetaContextId>) -> Result<Option<Agreement>, ClientError> {
        let request = InfoRequest {
            name: self.export.to_owned(),
            items: vec![InfoType::BlockSize],
        };
        let replies = match self.option(&OptionRequest::Go(request))? {
            Ended::Ack(replies) => replies,
            Ended::Refused(ReplyError::Unsupported, _) => return Ok(None),
            Ended::Refused(error, message) => return Err(self.refused(error, message)),
        };
        self.phase.set(Phase::Transmission(style));
        let mut export = None;
        let mut blocks = None;
        for reply in replies {
            match reply {
                OptionReply::Info(InfoItem::Export { size, flags }) => export = Some((size, flags)),
                OptionReply::Info(InfoItem::BlockSize {
                    minimum,
                    preferred,
                    maximum,
                }) => blocks = Some((minimum, preferred, maximum)),
                _ => {}
            }
        }
        let Some((size, flags)) = export else {
            return Err(self.senseless("an export without a size"));
        };
        let agreement = Agreement::new(size, flags, blocks, style, allocation);
        agreement.map(Some).map_err(|what| self.senseless(what))
    }

    /// Chooses the export in the way of old servers, which end the connection if they don't have it.
    fn export_name(
        &self,
        without_zeroes: bool,
        style: ReplyStyle,
        allocation: Option<MetaContextId>,
    ) -> Result<Agreement, ClientError> {
        let mut request = Vec::new();
        OptionRequest::ExportName(self.export.to_owned()).encode(&mut request);
        self.send(&request)?;
        let reply = self.decoded(ExportNameReply::decode(&self.receive::<{ ExportNameReply::SIZE }>()?))?;
        if !without_zeroes {
            self.receive::<EXPORT_NAME_PADDING>()?;
        }
        self.phase.set(Phase::Transmission(style));
        let agreement = Agreement::new(reply.size, reply.flags, None, style, allocation);
        agreement.map_err(|what| self.senseless(what))
    }

    /// Sends an option and takes all replies to it.
    fn option(&self, request: &OptionRequest) -> Result<Ended, ClientError> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.send(&bytes)?;
        let mut replies = Vec::new();
        while replies.len() < MAX_REPLIES {
            let header = OptionReplyHeader::decode(&self.receive::<{ OptionReplyHeader::SIZE }>()?);
            let header = self.decoded(header)?;
            if header.option != request.option() {
                return Err(self.senseless("a reply to an option that was not sent"));
            }
            // The header's length is bounded.
            let mut data = vec![0; usize::try_from(header.length).unwrap_or(usize::MAX)];
            self.receive_into(&mut data)?;
            match self.decoded(OptionReply::decode(header.reply, &data))? {
                OptionReply::Ack => return Ok(Ended::Ack(replies)),
                OptionReply::Error { error, message } => {
                    let message = appended(&message);
                    return match error {
                        ReplyError::TlsRequired => Err(self.refused(error, message)),
                        error => Ok(Ended::Refused(error, message)),
                    };
                }
                reply if reply.belongs_to(request.option()) => replies.push(reply),
                _ => return Err(self.senseless("a reply of a kind that the option does not have")),
            }
        }
        Err(self.senseless("replies without end to one option"))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = self.transport.set_deadline(self.deadline);
        sent.and_then(|()| self.transport.send(&[bytes]))
            .map_err(|error| self.lost(error))
    }

    fn receive<const N: usize>(&self) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.receive_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes exactly these bytes: with one more, what follows STARTTLS would not be proven to come from the server.
    fn receive_into(&self, mut rest: &mut [u8]) -> Result<(), ClientError> {
        while !rest.is_empty() {
            let received = self.transport.set_deadline(self.deadline);
            match received.and_then(|()| self.transport.receive(rest)) {
                Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => rest = &mut rest[count..],
                Err(error) => return Err(self.lost(error)),
            }
        }
        Ok(())
    }

    fn decoded<T>(&self, decoded: Result<T, crate::protocol::ProtocolError>) -> Result<T, ClientError> {
        decoded.map_err(|source| ClientError::Protocol {
            address: self.address.clone(),
            source,
        })
    }

    fn lost(&self, source: io::Error) -> ClientError {
        let address = self.address.clone();
        match source.kind() {
            // Only TLS says this; also of a certificate of this side that the server does not like.
            io::ErrorKind::InvalidData => ClientError::Tls { address, source },
            // What the system calls a timeout of a socket.
            io::ErrorKind::WouldBlock => ClientError::Negotiation {
                address,
                source: io::ErrorKind::TimedOut.into(),
            },
            _ => ClientError::Negotiation { address, source },
        }
    }

    fn senseless(&self, what: impl Into<String>) -> ClientError {
        ClientError::Senseless {
            address: self.address.clone(),
            what: what.into(),
        }
    }

    fn no_tls(&self, message: String) -> ClientError {
        ClientError::NoTls {
            address: self.address.clone(),
            message,
        }
    }

    fn refused(&self, error: ReplyError, message: String) -> ClientError {
        let (address, export) = (self.address.clone(), self.export.to_owned());
        match error {
            ReplyError::TlsRequired => ClientError::TlsRequired { address, message },
            ReplyError::Unknown => ClientError::NoExport {
                address,
                export,
                message,
            },
            _ => ClientError::Refused {
                address,
                export,
                message,
            },
        }
    }
}
