"""Made small conversations: greetings, what was said before, lists and other forms, small facts."""

from __future__ import annotations

import json

from libremoe.chat.message import Message
from libremoe.train.draw import Draw, a, answer, capital, user
from libremoe.train.generate_french import de, le, un
from libremoe.train.render import Document

HELLO = {
    "en": (["Hello", "Hi", "Hey", "Good morning", "Good evening", "Hi there", "Hello!", "Good afternoon", "Hey there!",
            "hello", "Hi!",
            "Greetings"], ["Hello! How can I help you?", "Hi! What can I do for you?", "Hello! Nice to meet you.",
                           "Hi there! What would you like to talk about?"]),
    "fr": (["Bonjour", "Salut", "Coucou", "Bonsoir", "Bonjour !", "Salut !", "Bonne journée !", "Hé, bonjour",
            "bonjour", "salut", "Bonsoir !",
            "Coucou !"], ["Bonjour ! Comment puis-je t'aider ?", "Salut ! Que puis-je faire pour toi ?",
                        "Bonjour ! De quoi veux-tu parler ?",
                          "Salut ! Ravi de te parler."]),
}
TALK = {
    "en": [(["How are you?", "How are you doing?", "How is it going?", "How do you do?"],
            ["I am fine, thank you. How are you?", "All well here! And you?"]),
           (["Thank you!", "Thanks a lot.", "Thanks!", "Thank you very much."], ["You're welcome!", "Gladly!",
                        "With pleasure."]),
           (["Goodbye!", "Bye!", "See you later.", "I have to go."], ["Goodbye! Have a nice day.",
                        "Bye! See you soon."]),
           (["I am bored.", "I have nothing to do.", "I'm so bored today.", "It is a boring day."],
            ["Shall I tell you a short story?", "How about a walk, or a short story from me?"]),
           (["I am tired.", "I'm so tired.", "I need some sleep.", "I did not sleep well."],
            ["Then a rest would do you good.", "I hope you can rest soon."]),
           (["I am sad today.", "I feel sad.", "I'm feeling down.", "I had a bad day."],
            ["I am sorry to hear that. Do you want to tell me about it?",
             "That sounds hard. Talking to a friend may help."]),
           (["I am happy!", "I had a great day.", "Today is a good day.", "I feel great."],
            ["That is good to hear! What happened?", "How nice! I am glad for you."]),
           (["Do you like {x}?", "What do you think of {x}?", "Do you enjoy {x}?", "Is {x} good?"],
            ["I am a program, so I cannot taste or see, but many people like {x}.",
             "I cannot try {x} myself. Do you like it?"]),
           (["What is your favourite colour?", "Which colour do you like?", "Do you have a favourite colour?",
             "What colour do you prefer?"], ["I cannot see colours, but I like to read about {c}.",
                        "I have none. What is yours?"]),
           (["Can you help me?", "I need help.", "Will you help me?", "Could you help me with something?"],
            ["Of course. What do you need?", "Yes. Tell me what it is about."]),
           (["What is the weather like?", "Will it rain today?", "Is it sunny outside?", "How warm is it?"],
            ["I cannot see the weather from here. Look out of the window, or ask a weather service.",
             "I do not know: I have no way to look outside."]),
           (["What time is it?", "What is the date today?", "Which day is it today?", "Do you know the time?"],
            ["I have no clock, so I do not know.", "I cannot know that: no clock was given to me."])],
    "fr": [(["Comment vas-tu ?", "Ça va ?", "Tu vas bien ?", "Comment ça va ?"],
            ["Je vais bien, merci. Et toi ?", "Tout va bien ! Et toi ?"]),
           (["Merci !", "Merci beaucoup.", "Un grand merci.", "Merci bien !"], ["De rien !", "Avec plaisir !",
                        "Je t'en prie."]),
           (["Au revoir !", "À bientôt !", "À plus tard.", "Je dois partir."], ["Au revoir ! Bonne journée.",
                        "À bientôt !"]),
           (["Je m'ennuie.", "Je n'ai rien à faire.", "Quelle journée ennuyeuse.", "Je m'ennuie aujourd'hui."],
            ["Veux-tu que je te raconte une petite histoire ?", "Une promenade, ou une petite histoire de ma part ?"]),
           (["Je suis fatigué.", "J'ai sommeil.", "Je suis très fatigué.", "J'ai mal dormi."],
            ["Un peu de repos te ferait du bien.", "J'espère que tu pourras te reposer bientôt."]),
           (["Je suis triste.", "Je me sens triste aujourd'hui.", "J'ai passé une mauvaise journée.", "Ça ne va pas."],
            ["J'en suis désolé. Veux-tu m'en parler ?", "Cela a l'air difficile. Parler à un ami peut aider."]),
           (["Je suis content !", "J'ai passé une belle journée.", "Aujourd'hui tout va bien.",
             "Je me sens très bien."],
            ["Voilà une bonne nouvelle ! Que s'est-il passé ?", "C'est bien ! J'en suis heureux pour toi."]),
           (["Peux-tu m'aider ?", "J'ai besoin d'aide.", "Veux-tu m'aider ?", "Tu peux m'aider ?"],
            ["Bien sûr. De quoi as-tu besoin ?", "Oui. Dis-moi de quoi il s'agit."]),
           (["Quel temps fait-il ?", "Va-t-il pleuvoir ?", "Fait-il beau dehors ?", "Il fait chaud ?"],
            ["Je ne vois pas le temps d'ici. Regarde par la fenêtre.",
             "Je ne sais pas : je ne peux pas regarder dehors."]),
           (["Quelle heure est-il ?", "Quel jour sommes-nous ?", "Quelle est la date ?", "Tu as l'heure ?"],
            ["Je n'ai pas d'horloge, donc je ne sais pas.",
             "Je ne peux pas le savoir : on ne m'a pas donné d'horloge."])],
}


def greeting(draw: Draw) -> tuple[Message, Message]:
    asked, said = HELLO[draw.lang]
    return user(draw.phrase(asked)), answer(draw.pick(said))


def small_talk(draw: Draw) -> Document:
    """Greetings and one to three small turns."""
    messages: tuple[Message, ...] = greeting(draw) if draw.chance(0.5) else ()
    for _ in range(draw.number(0 if messages else 1, 2)):
        asked, said = draw.pick(TALK[draw.lang])
        fill = {"x": draw.word("fruit"), "c": draw.word("colour")}
        messages += (user(draw.phrase(asked).format(**fill)), answer(draw.pick(said).format(**fill)))
    return Document(messages=messages)


FACTS = {  # about the person: they say, they ask, the answer; {v} the value
    "en": [("name", ["My name is {v}.", "I am called {v}.", "I'm {v}.", "Call me {v}."],
            ["What is my name?", "Do you remember my name?", "What am I called?", "Who am I?"], "Your name is {v}."),
           ("place", ["I live in {v}.", "I come from {v}.", "My town is {v}.", "My home is in {v}."],
            ["Where do I live?", "What is my town?", "Which town do I live in?", "Where is my home?"],
            "You live in {v}."),
           ("animal", ["I have {a}.", "My pet is {a}.", "I own {a}.", "At home I have {a}."],
            ["What pet do I have?", "Which animal do I have?", "What is my pet?", "What kind of pet do I own?"],
            "You have {a}."),
           ("colour", ["My favourite colour is {v}.", "I like the colour {v} best.", "I love {v} things.",
                       "I prefer {v}."],
            ["What is my favourite colour?", "Which colour do I like?", "What colour do I prefer?",
             "Which colour do I love?"],
            "Your favourite colour is {v}."),
           ("job", ["I work as {a}.", "My job: I am {a}.", "I am {a}.", "I earn my living as {a}."],
            ["What is my job?", "What do I do for a living?", "What work do I do?", "As what do I work?"],
            "You work as {a}."),
           ("fruit", ["My favourite fruit is the {v}.", "I like {v} best of all fruit.",
                      "Of all fruit I prefer the {v}.", "I love {v}."],
            ["What fruit do I like?", "What is my favourite fruit?", "Which fruit do I prefer?",
             "Which fruit do I love?"],
            "You like {v}.")],
    "fr": [("name", ["Je m'appelle {v}.", "Mon nom est {v}.", "Moi, c'est {v}.", "Appelle-moi {v}."],
            ["Comment je m'appelle ?", "Te souviens-tu de mon nom ?", "Quel est mon nom ?", "Qui suis-je ?"],
            "Tu t'appelles {v}."),
           ("place", ["J'habite à {v}.", "Je viens de {v}.", "Ma ville est {v}.", "Ma maison est à {v}."],
            ["Où est-ce que j'habite ?", "Quelle est ma ville ?", "Dans quelle ville est-ce que j'habite ?",
             "Où est ma maison ?"],
            "Tu habites à {v}."),
           ("animal", ["J'ai {a}.", "Mon animal est {a}.", "Chez moi, j'ai {a}.", "Je garde {a} à la maison."],
            ["Quel animal ai-je ?", "Quel est mon animal ?", "Qu'est-ce que j'ai comme animal ?",
             "Quel animal vit chez moi ?"],
            "Tu as {a}."),
           ("colour", ["Ma couleur préférée est le {v}.", "J'aime surtout le {v}.", "Je préfère le {v}.",
                       "J'adore le {v}."],
            ["Quelle est ma couleur préférée ?", "Quelle couleur est-ce que j'aime ?",
             "Quelle couleur est-ce que je préfère ?",
             "Quelle couleur est-ce que j'adore ?"], "Ta couleur préférée est le {v}."),
           ("job", ["Je suis {v}.", "Je travaille comme {v}.", "Mon métier : {v}.", "Dans la vie, je suis {v}."],
            ["Quel est mon métier ?", "Que fais-je dans la vie ?", "Comme quoi est-ce que je travaille ?",
             "Quel métier est-ce que je fais ?"],
            "Tu travailles comme {v}.")],
}
HEARD = {"en": ["Nice to know!", "Good to know.", "Thank you for telling me.", "I see.", "All right, noted."],
         "fr": ["C'est noté !", "Bon à savoir.", "Merci de me le dire.", "Je vois.", "D'accord, c'est noté."]}
UNSAID = {"en": ["You have not told me that.", "I do not know: you have not said it."],
          "fr": ["Tu ne me l'as pas dit.", "Je ne sais pas : tu ne l'as pas dit."]}


def memory(draw: Draw) -> Document:
    """Things that the person said, asked for later; one that was never said gets an honest answer."""
    facts = draw.random.sample(FACTS[draw.lang], draw.number(1, 3))
    messages: tuple[Message, ...] = greeting(draw) if draw.chance(0.3) else ()
    kept: list[tuple[list[str], str]] = []
    for kind, say, ask, reply in facts:
        value = draw.place() if kind == "place" else draw.word(kind)
        values = {"v": value, "a": a(value) if draw.lang == "en" else un(value)}
        messages += (user(draw.phrase(say).format(**values)), answer(draw.pick(HEARD[draw.lang])))
        kept.append((ask, reply.format(**values)))
    if draw.chance(0.2):
        asked, said = draw.pick(TALK[draw.lang][:3])
        messages += (user(draw.phrase(asked)), answer(draw.pick(said)))
    draw.random.shuffle(kept)
    for ask, reply in kept[: draw.number(1, 2)]:
        messages += (user(draw.phrase(ask)), answer(reply))
    if draw.chance(0.2):
        rest = [f for f in FACTS[draw.lang] if f not in facts]
        messages += (user(draw.phrase(draw.pick(rest)[2])), answer(draw.pick(UNSAID[draw.lang])))
    return Document(messages=messages)


KINDS = {
    "en": {"fruit": "fruits", "vegetable": "vegetables", "animal": "animals", "instrument": "instruments",
           "clothing": "clothes",
           "metal": "metals", "colour": "colours", "job": "jobs", "bread": "kinds of bread", "fabric": "fabrics",
           "gem": "gems",
           "name": "first names"},
    "fr": {"fruit": "fruits", "vegetable": "légumes", "animal": "animaux", "instrument": "instruments",
           "clothing": "vêtements",
           "metal": "métaux", "colour": "couleurs", "job": "métiers", "name": "prénoms"},
}
NUMBERS = {"en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"], "fr": ["zéro", "un", "deux",
                        "trois", "quatre", "cinq", "six", "sept", "huit"]}
LIST_ASK = {
    "en": ["List {n} {k}.", "Name {n} {k}.", "Give me {n} {k}.", "Write a list of {n} {k}.", "Tell me {n} {k}.",
           "I need {n} {k}.",
           "Can you name {n} {k}?", "Which {n} {k} do you know?"],
    "fr": ["Cite {n} {k}.", "Nomme {n} {k}.", "Donne-moi {n} {k}.", "Fais une liste de {n} {k}.", "Dis-moi {n} {k}.",
           "Il me faut {n} {k}.",
           "Peux-tu citer {n} {k} ?", "Quels sont {n} {k} que tu connais ?"],
}
FORMS = {
    "en": {"bullets": ["", " Use bullet points.", " One a line."], "numbers": [" Number them.", " As a numbered list."],
           "json": [" Answer in JSON.", " As a JSON list."], "commas": [" In one line, with commas.",
                        " Separate them with commas."]},
    "fr": {"bullets": ["", " Avec des tirets.", " Un par ligne."], "numbers": [" Numérote-les.",
                        " En liste numérotée."],
           "json": [" Réponds en JSON.", " En liste JSON."], "commas": [" Sur une ligne, avec des virgules.",
                        " Sépare-les par des virgules."]},
}
TASKS = {
    "en": {"sort": ["Sort these words: {w}", "Put these words in alphabetical order: {w}", "Order alphabetically: {w}",
                    "Alphabetical order, please: {w}"],
           "repeat": ["Repeat: {w}", "Say exactly this: {w}", "Repeat after me: {w}", "Copy this: {w}"],
           "last": ["What is the last word of this list: {w}", "Which word comes last: {w}", "Last of these? {w}",
                    "Tell me the last one: {w}"],
           "first": ["What is the first word of this list: {w}", "Which word comes first: {w}", "First of these? {w}",
                     "Tell me the first one: {w}"],
           "count": ["How many words are there: {w}", "Count these words: {w}", "How many things do I list? {w}",
                     "Count them: {w}"],
           "table": ["Make a table of these words and their length: {w}",
                     "Write a table with the words and their number of letters: {w}",
                     "Table of words and letters: {w}", "Put the words and their length into a table: {w}"]},
    "fr": {"sort": ["Trie ces mots : {w}", "Mets ces mots par ordre alphabétique : {w}", "Ordre alphabétique : {w}",
                    "Range par ordre alphabétique : {w}"],
           "repeat": ["Répète : {w}", "Dis exactement ceci : {w}", "Répète après moi : {w}", "Copie ceci : {w}"],
           "last": ["Quel est le dernier mot de cette liste : {w}", "Quel mot vient en dernier : {w}",
                    "Le dernier ? {w}", "Dis-moi le dernier : {w}"],
           "first": ["Quel est le premier mot de cette liste : {w}", "Quel mot vient en premier : {w}",
                     "Le premier ? {w}", "Dis-moi le premier : {w}"],
           "count": ["Combien de mots y a-t-il : {w}", "Compte ces mots : {w}", "Combien de choses ai-je citées ? {w}",
                     "Compte-les : {w}"],
           "table": ["Fais un tableau de ces mots et de leur longueur : {w}",
                     "Écris un tableau avec les mots et leur nombre de lettres : {w}",
                     "Tableau des mots et des lettres : {w}", "Mets les mots et leur longueur dans un tableau : {w}"]},
}


def forms(draw: Draw) -> Document:
    """Lists, numbered lists, JSON, tables; sorting, repeating and counting words."""
    kind = draw.pick(list(KINDS[draw.lang]))
    count = draw.number(2, 6)
    words = draw.some(kind, count)
    if draw.chance(0.55):
        form = draw.pick(["bullets", "bullets", "numbers", "json", "commas"])
        asked = draw.phrase(LIST_ASK[draw.lang]).format(n=draw.pick([str(count), NUMBERS[draw.lang][count]]),
                        k=KINDS[draw.lang][kind])
        return Document(messages=(user(asked + draw.pick(FORMS[draw.lang][form])), answer(_as(form, words))))
    task = draw.pick(list(TASKS[draw.lang]))
    asked = draw.phrase(TASKS[draw.lang][task]).format(w=", ".join(words))
    head = {"en": "| word | letters |", "fr": "| mot | lettres |"}[draw.lang]
    said = {"sort": ", ".join(sorted(words)), "repeat": ", ".join(words), "last": words[-1], "first": words[0],
            "count": str(len(words)),
            "table": "\n".join([head, "| --- | --- |", *(f"| {w} | {len(w)} |" for w in words)])}[task]
    return Document(messages=(user(asked), answer(said)))


def _as(form: str, words: list[str]) -> str:
    if form == "json":
        return json.dumps(words, ensure_ascii=False)
    if form == "commas":
        return capital(", ".join(words)) + "."
    return "\n".join(f"{i}. {w}" if form == "numbers" else f"- {w}" for i, w in enumerate(words, 1))


KNOW = {  # small facts that are the same everywhere; question phrasings, answer
    "en": (["What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}.",
            "{x}: what is its capital?"],
           "The capital of {x} is {y}."),
    "fr": (["De quel pays {y} est-elle la capitale ?", "{y} est la capitale de quel pays ?",
            "Quel pays a pour capitale {y} ?",
            "{y} : capitale de quel pays ?"], "{y} est la capitale du pays nommé {x} en anglais."),
}
AFTER = {
    "en": (["What comes after {x}?", "Which day or month follows {x}?", "After {x} comes what?", "What follows {x}?"],
           "{y} comes after {x}."),
    "fr": (["Qu'est-ce qui vient après {x} ?", "Quel jour ou mois suit {x} ?", "Après {x}, il y a quoi ?",
            "Que suit {x} ?"], "Après {x} vient {y}."),
}
CYCLES = {
    "en": [["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
           ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December"],
           ["spring", "summer", "autumn", "winter"]],
    "fr": [["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"],
           ["janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre",
            "décembre"],
           ["printemps", "été", "automne", "hiver"]],
}
OPPOSITES = {
    "en": "big small,hot cold,day night,up down,fast slow,happy sad,old new,open closed,wet dry,light dark,hard "
          "soft,early late,full empty,"
          "long short,rich poor,strong weak,near far,clean dirty,high low,good bad,first last,left right,loud "
          "quiet,thick thin",
    "fr": "grand petit,chaud froid,jour nuit,haut bas,rapide lent,heureux triste,vieux jeune,ouvert fermé,mouillé "
          "sec,clair sombre,dur mou,"
          "tôt tard,plein vide,long court,riche pauvre,fort faible,proche loin,propre sale,bon mauvais,premier "
          "dernier,gauche droite",
}
OPPOSITE_ASK = {
    "en": ["What is the opposite of {x}?", "Give me the opposite of {x}.", "Which word means the opposite of {x}?",
           "Opposite of {x}?"],
    "fr": ["Quel est le contraire de {x} ?", "Donne-moi le contraire de {x}.", "Quel mot est le contraire de {x} ?",
           "Le contraire de {x} ?"],
}


def know(draw: Draw) -> Document:
    """Capitals, what follows what, opposites, kinds."""
    kind = draw.random.random()
    if kind < 0.35 and draw.lang == "en":
        country, city = draw.pick(draw.lists.capitals())
        ask, reply = KNOW["en"]
        asked, said = draw.phrase(ask).format(x=country), reply.format(x=country, y=city)
    elif kind < 0.6:
        cycle = draw.pick(CYCLES[draw.lang])
        at = draw.number(0, len(cycle) - 1)
        words = {"x": cycle[at], "y": cycle[(at + 1) % len(cycle)]}
        ask, reply = AFTER[draw.lang]
        asked, said = draw.phrase(ask).format(**words), capital(reply.format(**words))
    elif kind < 0.8:
        pair = draw.pick(OPPOSITES[draw.lang].split(",")).split()
        draw.random.shuffle(pair)
        asked = draw.phrase(OPPOSITE_ASK[draw.lang]).format(x=pair[0])
        said = {"en": f"The opposite of {pair[0]} is {pair[1]}.",
                "fr": f"Le contraire {de(pair[0])} est {pair[1]}."}[draw.lang]
    else:
        asked, said = _what_is(draw)
    return Document(messages=(user(asked), answer(said)))


def _what_is(draw: Draw) -> tuple[str, str]:
    one = {"en": {"fruit": "a fruit", "vegetable": "a vegetable", "animal": "an animal", "instrument": "an instrument",
                  "metal": "a metal"},
           "fr": {"fruit": "un fruit", "vegetable": "un légume", "animal": "un animal", "instrument": "un instrument",
                  "metal": "un métal"}}
    kind = draw.pick(list(one[draw.lang]))
    other = draw.pick(list(one[draw.lang]))
    word = draw.word(kind)
    if draw.lang == "en":
        asked = draw.phrase(["Is {w} {o}?", "Tell me: is {w} {o}?", "{w}: is it {o}?", "Would you call {w} {o}?"])
        named = word if kind == "metal" else a(word)
        yes, no = f"Yes, {named} is {{}}.", f"No, {named} is {{}}."
    else:
        asked = draw.phrase(["{w}, est-ce {o} ?", "Dis-moi : {w}, est-ce {o} ?", "Est-ce que {w} est {o} ?",
                        "Peut-on dire que {w} est {o} ?"])
        named = le(word)
        yes, no = f"Oui, {named} est {{}}.", f"Non, {named} est {{}}."
    said = yes if kind == other else no
    return capital(asked.format(w=named, o=one[draw.lang][other])), said.format(one[draw.lang][kind])


