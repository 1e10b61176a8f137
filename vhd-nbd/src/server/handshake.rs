//! The negotiation, as a machine that takes bytes and gives bytes: no sockets, no clocks.

use std::sync::Arc;

use super::export::{Context, Export};
use super::export_set::ExportSet;
use crate::protocol::{
    ClientFlags, ContextQuery, DEFAULT_MAX_PAYLOAD, ExportNameReply, Greeting, HandshakeFlags, InfoItem, InfoRequest,
    InfoType, MAX_OPTION_LENGTH, MetaContextId, MetaContextRequest, OptionHeader, OptionReply, OptionRequest,
    OptionType, ProtocolError, ReplyError, ReplyStyle, TransmissionFlags,
};

/// Whether TLS is offered, and to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsPolicy {
    /// There is none.
    Off,
    /// Nothing is told before it is used.
    Required,
    /// It is in use.
    Active,
}

/// Bytes of replies that are kept before they are sent.
const MAX_OUTPUT: usize = 32 << 10;

/// What client and server agreed on.
#[derive(Clone, Debug)]
pub(super) struct Negotiated {
    pub(super) export: Arc<Export>,
    pub(super) style: ReplyStyle,
    pub(super) contexts: Vec<(MetaContextId, Context)>,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// Come again with more bytes.
    NeedBytes,
    /// Send what was said so far, and come again.
    Send,
    /// Change to TLS, and begin anew.
    StartTls,
    /// Serve the export.
    Transmission(Negotiated),
    /// The client has said good-bye.
    Aborted,
}

/// Why a client can't be talked to any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("there is no export {0:?}, and the option that asked for it knows no reply")]
    NoExport(String),
    #[error("an option that knows no reply came before TLS")]
    TlsRequired,
    #[error("an option that extended headers rule out")]
    ExportNameAfterExtended,
    #[error("the client does not speak the fixed newstyle of the handshake, without which there is no TLS")]
    NotFixed,
    #[error("the server is about to stop")]
    Stopping,
}

/// One negotiation.
pub(super) struct Handshake<'a> {
    exports: &'a ExportSet,
    tls: TlsPolicy,
    client: Option<ClientFlags>,
    style: ReplyStyle,
    selection: Option<Selection>,
    /// Bytes of a refused option that are still to come.
    skip: u64,
    /// The server is about to stop.
    stopping: bool,
}

/// Metadata contexts that were chosen for the export of this name.
struct Selection {
    export: String,
    contexts: Vec<(MetaContextId, Context)>,
}

/// How the reply to an option ends.
enum Answer {
    /// The option is answered; others follow.
    Go,
    /// This comes next.
    Next(Step),
    /// The option is refused.
    Refuse(ReplyError, String),
}

type Outcome = Result<Answer, HandshakeError>;

impl<'a> Handshake<'a> {
    pub(super) fn new(exports: &'a ExportSet, tls: TlsPolicy) -> Self {
        Self {
            exports,
            tls,
            client: None,
            style: ReplyStyle::Simple,
            selection: None,
            skip: 0,
            stopping: false,
        }
    }

    /// The server is about to stop: all that is asked for from now on is refused.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// What the server says first.
    pub(super) fn greet(out: &mut Vec<u8>) {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        Greeting { flags }.encode(out);
    }

    /// The negotiation goes on over TLS: nothing that was agreed on before counts.
    pub(super) fn restart_with_tls(&mut self) {
        let client = self.client;
        *self = Self::new(self.exports, TlsPolicy::Active);
        self.client = client;
    }

    /// Takes what it can of `input` and says how many bytes that was and what comes next; replies go to `out`.
    ///
    /// `input` must grow to an option of [`MAX_OPTION_LENGTH`] if it is to be taken.
    pub(super) fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Step), HandshakeError> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let (count, answer) = match self.take_one(rest, out)? {
                Some(next) => next,
                None => return Ok((taken, Step::NeedBytes)),
            };
            taken += count;
            if let Some(step) = answer {
                return Ok((taken, step));
            }
            if out.len() >= MAX_OUTPUT {
                return Ok((taken, Step::Send));
            }
        }
    }

    /// Takes one item; `None` if there is not enough of it.
    fn take_one(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, Option<Step>)>, HandshakeError> {
        if self.skip > 0 {
            let count = input.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= u64::try_from(count).unwrap_or(self.skip);
            return Ok((count > 0).then_some((count, None)));
        }
        if self.client.is_none() {
            let Some(flags) = input.first_chunk::<4>() else {
                return Ok(None);
            };
            self.accept_client(u32::from_be_bytes(*flags))?;
            return Ok(Some((flags.len(), None)));
        }
        let Some(header) = input.first_chunk::<{ OptionHeader::SIZE }>() else {
            return Ok(None);
        };
        let header = OptionHeader::decode(header)?;
        if header.length > MAX_OPTION_LENGTH {
            self.skip = header.length.into();
            let message = format!("the option has more than {MAX_OPTION_LENGTH} bytes of data");
            self.refuse(header.option, ReplyError::TooBig, message, out)?;
            return Ok(Some((OptionHeader::SIZE, None)));
        }
        let end = OptionHeader::SIZE + usize::try_from(header.length).unwrap_or(usize::MAX);
        let Some(data) = input.get(OptionHeader::SIZE..end) else {
            return Ok(None);
        };
        let step = self.answer(header.option, data, out)?;
        Ok(Some((end, step)))
    }

    fn accept_client(&mut self, found: u32) -> Result<(), HandshakeError> {
        let flags = ClientFlags::from_bits(found).ok_or(ProtocolError::ClientFlags { found })?;
        if self.tls == TlsPolicy::Required && !flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            // It could not be told to use TLS, and is told nothing else.
            return Err(HandshakeError::NotFixed);
        }
        self.client = Some(flags);
        Ok(())
    }

    fn answer(&mut self, option: OptionType, data: &[u8], out: &mut Vec<u8>) -> Result<Option<Step>, HandshakeError> {
        let answer = match (self.tls, option) {
            (_, OptionType::ExportName) if self.stopping => return Err(HandshakeError::Stopping),
            (_, option) if self.stopping && option != OptionType::Abort => {
                Answer::Refuse(ReplyError::Shutdown, "the server is about to stop".into())
            }
            (TlsPolicy::Required, OptionType::ExportName) => return Err(HandshakeError::TlsRequired),
            (TlsPolicy::Required, option) if !matches!(option, OptionType::StartTls | OptionType::Abort) => {
                Answer::Refuse(ReplyError::TlsRequired, "TLS comes first".into())
            }
            _ => match OptionRequest::decode(option, data) {
                Ok(request) => self.execute(request, out)?,
                Err(error) => self.malformed(option, error)?,
            },
        };
        match answer {
            Answer::Go => Ok(None),
            Answer::Next(step) => Ok(Some(step)),
            Answer::Refuse(error, message) => {
                self.refuse(option, error, message, out)?;
                Ok(None)
            }
        }
    }

    fn refuse(
        &self,
        option: OptionType,
        error: ReplyError,
        message: String,
        out: &mut Vec<u8>,
    ) -> Result<(), HandshakeError> {
        if option == OptionType::ExportName {
            return Err(HandshakeError::NoExport(message));
        }
        OptionReply::Error { error, message }.encode(option, out);
        Ok(())
    }

    fn malformed(&mut self, option: OptionType, error: ProtocolError) -> Outcome {
        if option == OptionType::SetMetaContext {
            // What was chosen before is replaced even by a failure.
            self.selection = None;
        }
        let kind = match error {
            ProtocolError::TooMany { .. } | ProtocolError::TooLong { .. } => ReplyError::TooBig,
            _ => ReplyError::Invalid,
        };
        Ok(Answer::Refuse(kind, error.to_string()))
    }

    fn execute(&mut self, request: OptionRequest, out: &mut Vec<u8>) -> Outcome {
        let option = request.option();
        match request {
            OptionRequest::ExportName(name) => self.export_name(&name, out),
            OptionRequest::Abort => {
                OptionReply::Ack.encode(option, out);
                Ok(Answer::Next(Step::Aborted))
            }
            OptionRequest::List => {
                for export in self.exports.iter() {
                    let name = export.name().to_owned();
                    let description = export.description().to_owned();
                    OptionReply::Server { name, description }.encode(option, out);
                }
                Ok(acknowledge(option, out))
            }
            OptionRequest::StartTls => Ok(self.start_tls(out)),
            OptionRequest::Info(request) => Ok(self
                .info(option, &request, out)
                .map_or_else(Answer::from, |_| Answer::Go)),
            OptionRequest::Go(request) => Ok(match self.info(option, &request, out) {
                Ok(export) => Answer::Next(Step::Transmission(self.negotiated(&request.name, export))),
                Err(refusal) => refusal.into(),
            }),
            OptionRequest::StructuredReply => Ok(match self.style {
                ReplyStyle::Extended => Answer::Refuse(
                    ReplyError::ExtendedHeaderRequired,
                    "extended headers are agreed on already".into(),
                ),
                _ => {
                    self.style = ReplyStyle::Structured;
                    acknowledge(option, out)
                }
            }),
            OptionRequest::ExtendedHeaders => {
                self.style = ReplyStyle::Extended;
                Ok(acknowledge(option, out))
            }
            OptionRequest::ListMetaContext(request) => {
                Ok(self.list_contexts(&request, out).unwrap_or_else(Answer::from))
            }
            OptionRequest::SetMetaContext(request) => Ok(self.set_contexts(&request, out).unwrap_or_else(Answer::from)),
            OptionRequest::Unknown { number, .. } => Ok(Answer::Refuse(
                ReplyError::Unsupported,
                format!("option {number} is not known"),
            )),
        }
    }

    fn start_tls(&self, out: &mut Vec<u8>) -> Answer {
        match self.tls {
            TlsPolicy::Off => Answer::Refuse(ReplyError::Policy, "this server has no certificate".into()),
            TlsPolicy::Active => Answer::Refuse(ReplyError::Invalid, "TLS is in use already".into()),
            TlsPolicy::Required => {
                OptionReply::Ack.encode(OptionType::StartTls, out);
                Answer::Next(Step::StartTls)
            }
        }
    }

    fn export_name(&mut self, name: &str, out: &mut Vec<u8>) -> Outcome {
        if self.style == ReplyStyle::Extended {
            return Err(HandshakeError::ExportNameAfterExtended);
        }
        let Some(export) = self.exports.find(name) else {
            return Err(HandshakeError::NoExport(name.to_owned()));
        };
        let reply = ExportNameReply {
            size: export.disk().size(),
            flags: export.flags(self.style),
        };
        let padding = !self.client.is_some_and(|flags| flags.contains(ClientFlags::NO_ZEROES));
        reply.encode(padding, out);
        Ok(Answer::Next(Step::Transmission(self.negotiated(name, export))))
    }

    fn negotiated(&mut self, name: &str, export: Arc<Export>) -> Negotiated {
        let selection = self.selection.take().filter(|selection| selection.export == name);
        Negotiated {
            export,
            style: self.style,
            contexts: selection.map(|selection| selection.contexts).unwrap_or_default(),
        }
    }

    /// Tells about an export, for INFO and GO.
    fn info(&self, option: OptionType, request: &InfoRequest, out: &mut Vec<u8>) -> Result<Arc<Export>, Refusal> {
        let export = self.find(&request.name)?;
        let mut tell = |item| OptionReply::Info(item).encode(option, out);
        if request.items.contains(&InfoType::Name) {
            tell(InfoItem::Name(export.name().to_owned()));
        }
        if request.items.contains(&InfoType::Description) && !export.description().is_empty() {
            tell(InfoItem::Description(export.description().to_owned()));
        }
        // Told unasked too: a client that keeps to it is served faster, and none has to.
        tell(InfoItem::BlockSize {
            minimum: 1,
            preferred: export.disk().info().physical_block_size,
            maximum: DEFAULT_MAX_PAYLOAD,
        });
        tell(InfoItem::Export {
            size: export.disk().size(),
            flags: self.flags(&request.name, &export),
        });
        OptionReply::Ack.encode(option, out);
        Ok(export)
    }

    /// What an export can do for this client. Where no contexts were agreed on there are none to choose from.
    fn flags(&self, name: &str, export: &Export) -> TransmissionFlags {
        let selection = self.selection.as_ref().filter(|selection| selection.export == name);
        let has_contexts = selection.is_some_and(|selection| !selection.contexts.is_empty());
        let mut flags = export.flags(self.style);
        flags.set(
            TransmissionFlags::BLOCK_STATUS_PAYLOAD,
            self.style == ReplyStyle::Extended && has_contexts,
        );
        flags
    }

    fn find(&self, name: &str) -> Result<Arc<Export>, Refusal> {
        let unknown = || Refusal(ReplyError::Unknown, format!("there is no export {name:?}"));
        self.exports.find(name).ok_or_else(unknown)
    }

    fn list_contexts(&self, request: &MetaContextRequest, out: &mut Vec<u8>) -> Result<Answer, Refusal> {
        let queries = self.queries(request)?;
        let export = self.find(&request.export)?;
        let listed = match &queries[..] {
            [] => export.contexts(),
            queries => unique(queries.iter().flat_map(|query| export.listed(query))),
        };
        for context in listed {
            let id = MetaContextId(0);
            let name = export.query_of(context).text();
            OptionReply::MetaContext { id, name }.encode(OptionType::ListMetaContext, out);
        }
        Ok(acknowledge(OptionType::ListMetaContext, out))
    }

    fn set_contexts(&mut self, request: &MetaContextRequest, out: &mut Vec<u8>) -> Result<Answer, Refusal> {
        self.selection = None;
        let queries = self.queries(request)?;
        let export = self.find(&request.export)?;
        let selected = unique(queries.iter().filter_map(|query| export.selected(query)));
        let contexts: Vec<_> = (1..).map(MetaContextId).zip(selected).collect();
        for (id, context) in &contexts {
            let (id, name) = (*id, export.query_of(*context).text());
            OptionReply::MetaContext { id, name }.encode(OptionType::SetMetaContext, out);
        }
        self.selection = Some(Selection {
            export: request.export.clone(),
            contexts,
        });
        Ok(acknowledge(OptionType::SetMetaContext, out))
    }

    fn queries(&self, request: &MetaContextRequest) -> Result<Vec<ContextQuery>, Refusal> {
        if self.style == ReplyStyle::Simple {
            return Err(Refusal(ReplyError::Invalid, "structured replies come first".into()));
        }
        let queries = request.queries.iter().map(|query| ContextQuery::parse(query));
        let queries: Result<_, _> = queries.collect();
        queries.map_err(|error: ProtocolError| Refusal(ReplyError::Invalid, error.to_string()))
    }
}

/// Why an option is refused, with a text for people.
struct Refusal(ReplyError, String);

impl From<Refusal> for Answer {
    fn from(Refusal(error, message): Refusal) -> Self {
        Self::Refuse(error, message)
    }
}

fn acknowledge(option: OptionType, out: &mut Vec<u8>) -> Answer {
    OptionReply::Ack.encode(option, out);
    Answer::Go
}

fn unique(contexts: impl Iterator<Item = Context>) -> Vec<Context> {
    let mut seen = Vec::new();
    for context in contexts {
        if !seen.contains(&context) {
            seen.push(context);
        }
    }
    seen
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
