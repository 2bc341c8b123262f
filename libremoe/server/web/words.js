// Every word of the page, in English and in French. {n} and the like are filled in by t(). French typography (narrow
// no-break spaces before ; : ! ? and inside « ») is put in by french(), so that the text below can be read.

const EN = {
  skip: "Skip to the message field", message: "Your message", new_chat: "New conversation", search: "Search conversations",
  conversations: "Conversations", settings: "Settings", close: "Close", open_list: "Show conversations", close_list: "Hide conversations",
  today: "Today", yesterday: "Yesterday", week: "Last seven days", older: "Older", untitled: "Untitled", more: "More",
  more_of: "More for “{title}”", rename: "Rename", rename_title: "Rename the conversation", name: "Name", save: "Save", cancel: "Cancel",
  remove: "Delete", remove_title: "Delete this conversation?", remove_text: "“{title}” will be erased from this machine: no copy stays.",
  removed: "The conversation was erased.", export: "Export", export_markdown: "Export as Markdown", export_json: "Export as JSON",
  export_html: "Export as a web page", no_hits: "Nothing found for “{query}”.", hits: "{n} found|{n} found",
  no_conversations: "Conversations will be listed here. They stay on this machine.",
  greeting: "What shall we look into?", greeting_text: "{model} runs on this machine. Nothing you write leaves it.",
  greeting_live: "{model} runs on this machine. With Live on, your question goes to the sources you chose, and nowhere else.",
  random: "This model’s weights are random: it shows that everything works, and what it says is noise.",
  idea_moe: "Explain to a curious ten-year-old how eight experts share the work in a model", idea_code: "Write a Python function that finds the longest palindrome, with tests",
  idea_trip: "Plan three calm days in Lisbon in March, as a table", idea_news: "What is new about reusable rockets?",
  write_here: "Write a message", send: "Send", stop: "Stop", live: "Live", tools: "Tools", persona: "Persona",
  live_on: "Live is on: each answer is written from your sources", live_off: "Live is off: the model answers from memory",
  live_archive: "Live is on, and offline: what was read before is searched, and nothing leaves",
  live_none: "Live needs a source: add one in the settings", tools_on: "Tools are on: each call is shown, and asked for where it acts", tools_off: "Tools are off",
  hint: "Enter sends · Shift+Enter makes a new line · Esc stops · ? lists the keys",
  you_said: "You said", answer_of: "{model} answered", copy: "Copy", copied: "Copied", copy_failed: "The browser did not allow copying.",
  copy_code: "Copy the code", code: "Code", edit: "Edit", regenerate: "Answer again", go_on: "Go on writing", experts: "Experts",
  version: "Version {i} of {n}", previous_version: "Previous version", next_version: "Next version", edit_message: "Edit your message", send_edit: "Send as a new branch",
  writing: "The answer is being written.", finished: "The answer is complete.", stopped: "Stopped.", stopped_here: "Stopped here.", cut_here: "Cut at the limit of tokens.",
  failed: "The answer failed.", failed_why: "The answer failed: {why}.", searching: "Searching your sources for “{query}”",
  sources: "Sources", n_sources: "{n} source|{n} sources", no_sources: "No sources", snapshot: "read {when}", published: "published {when}", excerpt: "The excerpt that was used",
  supported: "The source supports this sentence", unsupported: "The source does not support this sentence", dangling: "There is no such source", uncited: "No source is given for this sentence",
  checks: "{n} of {of} cited sentences is supported by its sources.|{n} of {of} cited sentences are supported by their sources.", doubts: "Not supported", facts: "Agreed by independent sources", opinions: "Opinions", conflicts: "Sources contradict each other",
  why_dangling: "there is no excerpt {about}", why_empty: "it says nothing that can be compared", why_silent: "the excerpt says nothing of this",
  why_unrelated: "[{about}] does not speak of this", why_quote: "“{about}” does not stand there", why_number: "the source does not give {about}",
  why_date: "the source does not give the date {about}", why_name: "the source does not say this of {about}",
  why_negation: "one of them has a negation that the other has not",
  why_opposite: "it says the opposite of the source, or something that excludes it", why_hedged: "the source says only that it may be so",
  why_words: "the source has too few of its words", why_elsewhere: "the source gives {about} for something else",
  why_other_date: "the source gives {about} for another date", why_swapped: "{about} have changed places",
  opinion_n: "{n} voice|{n} voices", source_n: "Source {n}", marker: "no source {n}",
  kind_feed: "feed", kind_page: "page", kind_search: "web search", kind_wikipedia: "Wikipedia", kind_mastodon: "Mastodon", kind_bluesky: "Bluesky", kind_x: "X",
  left_search: "search: {rest}", left_read: "read: {rest}", left_result: "result of {rest}", left_open: "open a page", left_add: "add a source", left_mcp: "MCP server {rest}",
  call: "Tool call", call_asks: "The model wants to call this tool", allow: "Allow once", always: "Allow in this conversation", refuse: "Refuse", call_input: "Input", call_output: "Result",
  call_running: "running", call_waiting: "waits for you", call_done: "done", call_failed: "failed",
  per_second: "{n} tokens/s", first_token: "first after {n} s", n_tokens: "{n} token|{n} tokens", cache: "{n} of experts were in memory", prompt: "prompt {hash}", prompt_title: "SHA-256 of the system prompt: {hash}",
  no_prompt: "no system prompt", no_prompt_title: "This model was trained without system prompts: a persona changes its tools and its sampling alone",
  atlas: "Expert atlas", atlas_text: "Each row is a layer, each column an expert. The stronger the colour, the more tokens of the answer it worked on.",
  atlas_empty: "Experts of an answer appear here while it is written.", atlas_none: "This model has no experts: every weight works on every token.",
  atlas_label: "Heat map: {layers} layers by {experts} experts. The busiest is expert {e} of layer {l}, for {share} of the tokens.", atlas_token: "Token", atlas_at: "Token {i} of {n}: {text}", atlas_hover: "Point at a token, or move along them, to see its experts.",
  atlas_layer: "layer", atlas_expert: "expert", atlas_less: "fewer", atlas_more: "more",
  general: "General", theme: "Appearance", system: "As the system", light: "Light", dark: "Dark", language: "Language", temperature: "Temperature", temperature_auto: "as the persona says", max_tokens: "Longest answer, in tokens", max_tokens_auto: "as long as fits",
  privacy: "Privacy", offline: "Offline", offline_text: "While this is on, nothing leaves this machine: connections are refused at the socket.", offline_on: "Offline", ledger: "What has left this machine", ledger_empty: "Nothing has left this machine.",
  ledger_text: "Every request that went out: when, to whom, why, and the query as it was sent.", when: "When", host: "To", why: "Why", what: "Sent", no_live: "This server was started without live sources, so it sends nothing anywhere.",
  live_sources: "Live sources", sources_text: "Live answers ask these, and no others.", add_source: "Add a source", kind: "Kind", kind_auto: "found out", address: "Address or name", add: "Add", remove_source: "Remove {name}", source_added: "{name} was added.", source_removed: "{name} was removed.", sources_empty: "No source yet.",
  prompts: "System prompts", prompts_text: "What the model is told before you say anything, word for word. Each answer names the hash of the one it was written under.", in_use: "in use since {when}", earlier: "Earlier, since {when}", own: "your own",
  data: "Your data", import: "Import", import_text: "Conversations exported by ChatGPT, Open WebUI or libremoe (.json, .zip).", choose_file: "Choose a file", importing: "Reading {name}", imported: "{n} conversation was imported.|{n} conversations were imported.", import_failed: "{name}: {message}",
  erase_all: "Erase all conversations", erase_all_text: "The conversation will be erased from this machine: no copy stays. Export first what you want to keep.|All {n} conversations will be erased from this machine: no copy stays. Export first what you want to keep.", erased_all: "All conversations were erased.",
  layers_name: "Layers", table: "Table", formula: "Formula", about: "About", model: "Model", context: "Context", context_n: "{n} tokens", layers_experts: "{layers} layers, {experts} experts in each", dense: "{layers} layers", storage: "Conversations", kept_on_disk: "kept on this machine", kept_in_memory: "kept in memory only, until the server ends", weights: "Weights", weights_random: "random", log_out: "Log out",
  keyboard: "Keyboard", k_send: "Send", k_line: "New line", k_stop: "Stop the answer", k_new: "New conversation", k_search: "Search", k_message: "To the message field", k_list: "Show or hide conversations", k_edit: "Edit your last message (in an empty field)", k_copy: "Copy the last answer", k_again: "Answer again", k_version: "Previous or next version of the last answer", k_atlas: "Expert atlas", k_settings: "Settings", k_keys: "These keys", or: "or", key_enter: "Enter", key_shift: "Shift", key_esc: "Esc",
  error: "That did not work: {message}", no_server: "The server does not answer. What you wrote is kept here; trying again.", again: "Try again", back: "The server answers again.", gone: "This conversation is not here any more.", to_end: "To the newest message",
};

const FR = {
  skip: "Aller au champ de message", message: "Votre message", new_chat: "Nouvelle conversation", search: "Rechercher un échange",
  conversations: "Conversations", settings: "Réglages", close: "Fermer", open_list: "Afficher les conversations", close_list: "Masquer les conversations",
  today: "Aujourd’hui", yesterday: "Hier", week: "Sept derniers jours", older: "Plus anciennes", untitled: "Sans titre", more: "Autres actions",
  more_of: "Autres actions pour « {title} »", rename: "Renommer", rename_title: "Renommer la conversation", name: "Nom", save: "Enregistrer", cancel: "Annuler",
  remove: "Supprimer", remove_title: "Supprimer cette conversation ?", remove_text: "« {title} » sera effacée de cette machine : il n’en restera aucune copie.",
  removed: "La conversation a été effacée.", export: "Exporter", export_markdown: "Exporter en Markdown", export_json: "Exporter en JSON",
  export_html: "Exporter en page web", no_hits: "Rien trouvé pour « {query} ».", hits: "{n} trouvée|{n} trouvées",
  no_conversations: "Vos conversations apparaîtront ici. Elles restent sur cette machine.",
  greeting: "Que voulez-vous explorer ?", greeting_text: "{model} tourne sur cette machine. Rien de ce que vous écrivez n’en sort.",
  greeting_live: "{model} tourne sur cette machine. En direct, votre question va aux sources que vous avez choisies, et nulle part ailleurs.",
  random: "Les poids de ce modèle sont aléatoires : il montre que tout fonctionne, et ce qu’il dit n’est que du bruit.",
  idea_moe: "Explique à un enfant curieux de dix ans comment huit experts se partagent le travail dans un modèle", idea_code: "Écris une fonction Python qui trouve le plus long palindrome, avec ses tests",
  idea_trip: "Prépare trois jours tranquilles à Lisbonne en mars, sous forme de tableau", idea_news: "Quoi de neuf du côté des fusées réutilisables ?",
  write_here: "Écrivez un message", send: "Envoyer", stop: "Arrêter", live: "En direct", tools: "Outils", persona: "Personnage",
  live_on: "En direct : chaque réponse est écrite d’après vos sources", live_off: "Hors direct : le modèle répond de mémoire",
  live_archive: "En direct, mais hors ligne : la recherche se fait dans ce qui a déjà été lu, et rien ne sort",
  live_none: "Le direct a besoin d’une source : ajoutez-en une dans les réglages", tools_on: "Outils activés : chaque appel est montré, et soumis à votre accord s’il agit", tools_off: "Outils désactivés",
  hint: "Entrée envoie · Maj+Entrée va à la ligne · Échap arrête · ? montre les raccourcis",
  you_said: "Vous avez dit", answer_of: "{model} a répondu", copy: "Copier", copied: "Copié", copy_failed: "Le navigateur n’a pas permis la copie.",
  copy_code: "Copier le code", code: "Code", edit: "Modifier", regenerate: "Répondre à nouveau", go_on: "Continuer", experts: "Experts",
  version: "Version {i} sur {n}", previous_version: "Version précédente", next_version: "Version suivante", edit_message: "Modifier votre message", send_edit: "Envoyer comme nouvelle branche",
  writing: "La réponse est en cours d’écriture.", finished: "La réponse est terminée.", stopped: "Arrêté.", stopped_here: "Arrêtée ici.", cut_here: "Coupée à la limite de jetons.",
  failed: "La réponse a échoué.", failed_why: "La réponse a échoué : {why}.", searching: "Recherche dans vos sources : « {query} »",
  sources: "Sources", n_sources: "{n} source|{n} sources", no_sources: "Aucune source", snapshot: "lu : {when}", published: "publié : {when}", excerpt: "L’extrait utilisé",
  supported: "La source appuie cette phrase", unsupported: "La source n’appuie pas cette phrase", dangling: "Cette source n’existe pas", uncited: "Aucune source n’est donnée pour cette phrase",
  checks: "{n} phrase sur {of} est appuyée par ses sources.|{n} phrases sur {of} sont appuyées par leurs sources.", doubts: "Sans appui", facts: "Établi par des sources indépendantes", opinions: "Opinions", conflicts: "Des sources se contredisent",
  why_dangling: "il n’y a pas d’extrait {about}", why_empty: "elle ne dit rien que l’on puisse comparer", why_silent: "l’extrait n’en dit rien",
  why_unrelated: "[{about}] ne parle pas de cela", why_quote: "« {about} » ne s’y trouve pas", why_number: "la source ne donne pas {about}",
  why_date: "la source ne donne pas la date {about}", why_name: "la source ne dit pas cela à propos de « {about} »",
  why_negation: "l’une des deux a une négation que l’autre n’a pas",
  why_opposite: "elle dit le contraire de la source, ou quelque chose qui l’exclut", why_hedged: "la source dit seulement que c’est possible",
  why_words: "la source a trop peu de ses mots", why_elsewhere: "la source donne {about} pour autre chose",
  why_other_date: "la source donne {about} pour une autre date", why_swapped: "{about} ont échangé leurs places",
  opinion_n: "{n} voix|{n} voix", source_n: "Source {n}", marker: "pas de source {n}",
  kind_feed: "flux", kind_page: "page", kind_search: "recherche web", kind_wikipedia: "Wikipédia", kind_mastodon: "Mastodon", kind_bluesky: "Bluesky", kind_x: "X",
  left_search: "recherche : {rest}", left_read: "lecture : {rest}", left_result: "résultat de {rest}", left_open: "ouverture d’une page", left_add: "ajout d’une source", left_mcp: "serveur MCP {rest}",
  call: "Appel d’outil", call_asks: "Le modèle veut appeler cet outil", allow: "Autoriser une fois", always: "Autoriser dans cette conversation", refuse: "Refuser", call_input: "Entrée", call_output: "Résultat",
  call_running: "en cours", call_waiting: "attend votre accord", call_done: "terminé", call_failed: "échec",
  per_second: "{n} jetons/s", first_token: "premier après {n} s", n_tokens: "{n} jeton|{n} jetons", cache: "{n} des experts étaient en mémoire", prompt: "consigne {hash}", prompt_title: "SHA-256 de la consigne système : {hash}",
  no_prompt: "sans consigne système", no_prompt_title: "Ce modèle a été entraîné sans consigne système : un personnage n’en change que les outils et l’échantillonnage",
  atlas: "Atlas des experts", atlas_text: "Chaque ligne est une couche, chaque colonne un expert. Plus la couleur est forte, plus il a travaillé sur des jetons de la réponse.",
  atlas_empty: "Les experts d’une réponse apparaissent ici pendant qu’elle s’écrit.", atlas_none: "Ce modèle n’a pas d’experts : chaque poids travaille sur chaque jeton.",
  atlas_label: "Carte de chaleur : {layers} couches et {experts} experts. Le plus sollicité est l’expert {e} de la couche {l}, pour {share} des jetons.", atlas_token: "Jeton", atlas_at: "Jeton {i} sur {n} : {text}", atlas_hover: "Pointez un jeton, ou parcourez-les, pour voir ses experts.",
  atlas_layer: "couche", atlas_expert: "expert", atlas_less: "moins", atlas_more: "plus",
  general: "Général", theme: "Apparence", system: "Comme le système", light: "Claire", dark: "Sombre", language: "Langue", temperature: "Température", temperature_auto: "selon le personnage", max_tokens: "Réponse la plus longue, en jetons", max_tokens_auto: "autant que possible",
  privacy: "Confidentialité", offline: "Hors ligne", offline_text: "Tant que c’est activé, rien ne sort de cette machine : les connexions sont refusées là où elles s’ouvrent.", offline_on: "Hors ligne", ledger: "Ce qui est sorti de cette machine", ledger_empty: "Rien n’est sorti de cette machine.",
  ledger_text: "Chaque requête partie : quand, vers qui, pourquoi, et la requête telle qu’envoyée.", when: "Quand", host: "Vers", why: "Pourquoi", what: "Envoyé", no_live: "Ce serveur a été lancé sans sources en direct : il n’envoie rien nulle part.",
  live_sources: "Sources en direct", sources_text: "Les réponses en direct interrogent celles-ci, et aucune autre.", add_source: "Ajouter une source", kind: "Type", kind_auto: "à déterminer", address: "Adresse ou nom", add: "Ajouter", remove_source: "Retirer {name}", source_added: "{name} a été ajoutée.", source_removed: "{name} a été retirée.", sources_empty: "Aucune source pour l’instant.",
  prompts: "Consignes système", prompts_text: "Ce qui est dit au modèle avant que vous ne parliez, mot pour mot. Chaque réponse nomme l’empreinte de celle qui l’a guidée.", in_use: "en usage depuis le {when}", earlier: "Auparavant, depuis le {when}", own: "la vôtre",
  data: "Vos données", import: "Importer", import_text: "Conversations exportées par ChatGPT, Open WebUI ou libremoe (.json, .zip).", choose_file: "Choisir un fichier", importing: "Lecture de {name}", imported: "{n} conversation a été importée.|{n} conversations ont été importées.", import_failed: "{name} : {message}",
  erase_all: "Effacer toutes les conversations", erase_all_text: "La conversation sera effacée de cette machine : il n’en restera aucune copie. Exportez d’abord ce que vous voulez garder.|Les {n} conversations seront effacées de cette machine : il n’en restera aucune copie. Exportez d’abord ce que vous voulez garder.", erased_all: "Toutes les conversations ont été effacées.",
  layers_name: "Couches", table: "Tableau", formula: "Formule", about: "À propos", model: "Modèle", context: "Contexte", context_n: "{n} jetons", layers_experts: "{layers} couches de {experts} experts", dense: "{layers} couches", storage: "Conversations", kept_on_disk: "gardées sur cette machine", kept_in_memory: "en mémoire seulement, jusqu’à l’arrêt du serveur", weights: "Poids", weights_random: "aléatoires", log_out: "Se déconnecter",
  keyboard: "Clavier", k_send: "Envoyer", k_line: "Aller à la ligne", k_stop: "Arrêter la réponse", k_new: "Nouvelle conversation", k_search: "Rechercher", k_message: "Vers le champ de message", k_list: "Afficher ou masquer les conversations", k_edit: "Modifier votre dernier message (champ vide)", k_copy: "Copier la dernière réponse", k_again: "Répondre à nouveau", k_version: "Version précédente ou suivante de la dernière réponse", k_atlas: "Atlas des experts", k_settings: "Réglages", k_keys: "Ces raccourcis", or: "ou", key_enter: "Entrée", key_shift: "Maj", key_esc: "Échap",
  error: "Cela n’a pas marché : {message}", no_server: "Le serveur ne répond pas. Ce que vous avez écrit est gardé ici ; nouvel essai en cours.", again: "Réessayer", back: "Le serveur répond de nouveau.", gone: "Cette conversation n’est plus ici.", to_end: "Vers le message le plus récent",
};

/** Spaces as French typography wants them. */
export function french(text) {
  return text.replace(/ :/g, "\u00a0:").replace(/ ([;!?»])/g, "\u202f$1").replace(/« /g, "«\u202f");
}

export const WORDS = { en: EN, fr: Object.fromEntries(Object.entries(FR).map(([key, text]) => [key, french(text)])) };
const SECOND = 1000;

export const language = () => (document.documentElement.lang === "fr" ? "fr" : "en");

/** Why a sentence is not borne out: the words of live/reasons.py. Answers kept before there were codes carry English. */
export const reason = (code, about = "") => (`why_${code}` in WORDS.en ? t(`why_${code}`, { about }) : code);

/** The words for key. {n} chooses between "one|many" where there are two. */
export function t(key, values = {}) {
  let text = WORDS[language()][key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  if (text.includes("|")) {
    const [one, many] = text.split("|");
    text = new Intl.PluralRules(language()).select(values.n) === "one" ? one : many;
  }
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : value === undefined ? whole : String(value);
  });
}

/** What a source is. Archives of a newer libremoe may hold other kinds. */
export const kindOf = (kind) => (`kind_${kind}` in WORDS.en ? t(`kind_${kind}`) : kind);

const ERRANDS = [["search: ", "search"], ["read: ", "read"], ["result of ", "result"], ["open a page", "open"], ["add a source", "add"], ["MCP server ", "mcp"]];

/** Why something left, as the ledger says it in English. */
export function errand(why) {
  const [begins, key] = ERRANDS.find(([one]) => why.startsWith(one)) ?? [];
  return key ? t(`left_${key}`, { rest: why.slice(begins.length) }) : why;
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
export const percent = (share) => new Intl.NumberFormat(language(), { style: "percent", maximumFractionDigits: 0 }).format(share);

/** The reader's own way with times and dates, where it is one of the page's language: en-GB counts the hours to 24. */
const locale = () => navigator.languages.find((one) => one.split("-")[0] === language()) ?? language();

/** A Unix time in seconds, short: the hour today, else the day. */
export function moment(seconds) {
  const date = new Date(seconds * SECOND);
  const near = date.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(locale(), near ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" }).format(date);
}

export const day = (text) => new Intl.DateTimeFormat(locale(), { dateStyle: "medium" }).format(new Date(text));
