//! What a body asks for, whichever interface it is of, without a server around it: for fuzzers, which choose the body.

use super::automatic::words::{From as Begins, Words};
use super::body::parse;
use super::error::Refusal;
use super::given::{InitBody, decoded};
use super::limits;
use super::openai::body::ImagesBody;
use super::request::RequestBody;
use protocol::job::{JobRequest, Lora};

/// Whose words a body is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `POST /v1/jobs`.
    Native,
    /// `POST /v1/images/generations`.
    OpenAi,
    /// `POST /sdapi/v1/txt2img`.
    Text,
    /// `POST /sdapi/v1/img2img`.
    Picture,
}

impl Interface {
    /// All.
    pub const ALL: [Self; 4] = [Self::Native, Self::OpenAi, Self::Text, Self::Picture];
}

/// What is asked for, within the limits of every server, and the picture that was sent along. LoRA files are not looked
/// for, and neither is a picture that is named.
///
/// # Errors
/// What the caller is told.
pub fn asked(interface: Interface, body: &[u8]) -> Result<(JobRequest, Option<Vec<u8>>), String> {
    read(interface, body).map_err(|refusal| refusal.to_string())
}

fn read(interface: Interface, body: &[u8]) -> Result<(JobRequest, Option<Vec<u8>>), Refusal> {
    let (request, loras, init) = match interface {
        Interface::Native => {
            let mut body: RequestBody = parse(body)?;
            let (loras, init) = body.take_given();
            (JobRequest::from(body), loras, init)
        }
        Interface::OpenAi => {
            let body: ImagesBody = parse(body)?;
            if body.stream() {
                body.partial_images(body.count()?)?;
            }
            (body.request()?, Vec::new(), None)
        }
        Interface::Text | Interface::Picture => {
            let picture = interface == Interface::Picture;
            let from = if picture { Begins::Picture } else { Begins::Text };
            let words = Words::read(parse(body)?, from)?;
            (words.request, words.loras, words.init)
        }
    };
    let data = init.as_ref().and_then(|init: &InitBody| init.data.as_deref());
    let picture = data.map(decoded).transpose().map_err(Refusal::invalid)?;
    let named = |lora: super::given::LoraBody| Lora {
        name: lora.name.unwrap_or_else(|| lora.file.to_string()),
        file: lora.file,
        scale: lora.scale,
    };
    let request = JobRequest { loras: loras.into_iter().map(named).collect(), ..request };
    limits::check(&request, None, None)?;
    Ok((request, picture))
}
