"""Made stories in simple words: a hero, a wish or a worry, a friend, a happy end. English and French."""

from __future__ import annotations

from libremoe.train.draw import Draw, a, answer, user
from libremoe.train.generate_french import FEMININE, le, un
from libremoe.train.render import Document

Beats = list[list[str]]

# {H} the hero's name, {h} the hero's animal with article, {F} {f} the friend's, {o} an object, {p} {q} places;
# {he} {He} {his} {him} of the hero; {e} the French feminine ending of the hero.
EN: list[Beats] = [
    [["Once upon a time there was {h} named {H}.", "{H} was {h} who lived {p}.",
      "In a small house {p} lived {h} called {H}.",
      "Long ago, {h} named {H} lived {p}."],
     ["{H} had {o} and took it everywhere.", "{He} loved {his} {O} more than anything.",
      "Every day {he} played with {his} {O}.",
      "{His} best thing was {o}."],
     ["One morning the {O} was gone.", "One day {he} could not find {his} {O}.", "But one evening the {O} was lost.",
      "Then, one windy day, the {O} was not there."],
     ["{H} looked under the bed, but it was not there.", "{He} looked everywhere and began to cry.",
      "{He} looked {q}, but found nothing.",
      "{He} looked and looked until it was dark."],
     ['"What is wrong?" asked {F}, {f}.', '{F}, {f}, came by. "Why are you sad?"',
      'Then {he} met {f} named {F}. "Can I help you?"',
      '"You look sad," said {F}, {f}.'],
     ['"I lost my {O}," said {H}. "Let us look together," said {F}.',
      '"My {O} is gone," {he} said. {F} said, "I will help you."',
      '"Help me to find my {O}," said {H}. And {F} did.'],
     ["They went {q}, and there it was!", "They looked {q}. The {O} was there, a little wet.",
      "At last {F} saw the {O} {q}.",
      "{F} had a good nose and found the {O} {q}."],
     ['"Thank you!" said {H}. From that day on they were friends.',
      "{H} was so happy that {he} danced. They shared some bread and laughed.",
      "{H} gave {F} a big hug, and they played together until night.",
      "After that, {H} and {F} played together every day."]],
    [["{H} was {h}, and {he} was afraid of {w}.", "There was once {h} named {H} who feared {w}.",
      "Every night {H}, {h}, was afraid of {w}.",
      "{H} lived {p}. {He} was {h}, and {w} scared {him}."],
     ['"I am too small," {he} often said.', "{He} hid under a blanket.", "{He} never told anyone about it.",
      "{His} heart went boom, boom, boom."],
     ["One night {F}, {f}, was alone outside and called for help.",
      "Then {he} heard a voice: {F}, {f}, was in trouble {q}.",
      "One evening {F}, {f}, did not come home.", 'Somebody cried, "Help!" It was {F}, {f}.'],
     ["{H} was afraid, but {he} went out.", "{He} took a deep breath and opened the door.",
      '"I must go," said {H}, and {he} went.',
      "{H} shook, but {he} ran {q}."],
     ["{He} found {F} {q} and took {F} home.", "There was {F}. {H} pulled hard, and soon {F} was free.",
      "{H} showed {F} the way home.",
      "Together they walked back, step by step."],
     ['"You are brave," said {F}.', '"Thank you, {H}! You saved me," said {F}.',
      '{F} smiled. "You were not afraid at all!"',
      'Everybody said, "How brave you are!"'],
     ['"I was afraid," said {H}, "but I went."', "Since then {H} has not been afraid of {w}.",
      "{H} slept well that night.",
      "To be brave is to be afraid and to go all the same."]],
    [["{H}, {h}, found {o} {q}.", "One sunny day {H} found {o}. {H} was {h}.",
      "{H} was {h}. One day {he} got {o} from an old woman.",
      "Once {h} named {H} had {o} that nobody else had."],
     ['"It is mine," said {H}. "I will not share it."', "{He} did not want to show it to anyone.",
      "{He} kept it in a box and locked the door.",
      '"Nobody may touch it," {he} said.'],
     ["{F}, {f}, asked to play, but {H} said no.", "Then {F}, {f}, came. \"May I see it?\" \"No!\" said {H}.",
      "{F}, {f}, wanted to play too. {H} ran away.",
      "{H} saw {F}, {f}, and hid it."],
     ["But it was no fun to play alone.", "Soon {H} felt lonely.", "The days were long, and {H} was alone.",
      "{H} sat {p} and was sad."],
     ["So {he} went to {F}. \"Come and play with me,\" {he} said.",
      "{He} thought about it all night. In the morning {he} called {F}.",
      "At last {he} took the {O} to {F}.", '"I am sorry," said {H}. "It is for both of us."'],
     ["They played the whole day.", "They laughed and played until the sun went down.", "{F} was glad, and {H} too.",
      "{F} brought some cake, and they ate it together."],
     ["What we share makes us happy twice.", "Now {H} knows: it is better to share.",
      "And from then on {H} always shared.",
      '"With a friend it is much better," said {H}.']],
    [["{H} wanted to spend a day {q}.", "{H}, {h}, had a dream: to live {q}.",
      "There was {h} called {H} who had never been {q}.", "{H} was {h} who loved to travel."],
     ["{He} packed some bread and {o}.", "{He} took {o} and left early in the morning.",
      "So {he} put {o} into a bag and said goodbye.",
      "{His} mother gave {him} {o} for the way."],
     ["The way was long and it began to rain.", "First the sun was shining, then came the clouds.",
      "After an hour {he} was tired.",
      "There was a river, and there was no bridge."],
     ["{He} met {F}, {f}, who was hungry.", "By the road sat {f}. \"I am {F},\" it said, \"and I am hungry.\"",
      "Then {F}, {f}, came along the road.",
      "{f2} named {F} sat under a tree."],
     ["{H} gave {F} half of the bread.", '"Eat with me," said {H}.', "{H} shared the bread, and they talked.",
      "They ate together and became friends."],
     ['"I know the way," said {F}. "Come with me!"', "{F} knew a short way through the hills.",
      "{F} made a small boat for both of them.",
      '"Let us go together," said {F}.'],
     ["In the evening they were there. It was beautiful.", "At last they sat {q}, and they were happy.",
      "{H} had never seen anything so beautiful.",
      "When they arrived, the stars were shining."],
     ["Then they went home and told everybody about it.", "They stayed for three days.",
      "{H} will never forget that day.", "That was {H}'s first journey, but not the last."]],
]
FR: list[Beats] = [
    [["Il était une fois {h} qui s'appelait {H}.", "{H} était {h} qui vivait {p}.",
      "Dans une petite maison {p} vivait {h} nommé{e} {H}.",
      "Il y a longtemps, {h} nommé{e} {H} vivait {p}."],
     ["{H} avait {o} et jouait avec tous les jours.", "{He} avait {o} qu'{he} aimait beaucoup.",
      "Chaque jour, {he} jouait avec {le_o}.", "Son trésor, c'était {o}."],
     ["Un matin, {le_o} n'était plus là.", "Un jour, {he} ne trouva plus {le_o}.",
      "Mais un soir, plus rien : {le_o} avait disparu.",
      "Puis, un jour de grand vent, {le_o} disparut."],
     ["{H} chercha sous le lit, mais ne trouva rien.", "{He} chercha partout et se mit à pleurer.",
      "{He} chercha {q}, sans rien trouver.",
      "{He} chercha jusqu'à la nuit."],
     ["« Qu'as-tu ? » demanda {F}, {f}.", "{F}, {f}, passait par là. « Pourquoi es-tu triste ? »",
      "Alors arriva {f} : c'était {F}. « Puis-je t'aider ? »",
      "« Tu as l'air triste », dit {F}, {f}."],
     ["« Je ne trouve plus {le_o} », dit {H}. « Cherchons ensemble », dit {F}.",
      "{H} raconta tout. « Je vais t'aider », dit {F}.",
      "« Aide-moi à chercher », dit {H}. Et {F} l'aida."],
     ["Ils allèrent {q}, et voilà {le_o} !", "Ils cherchèrent {q} et trouvèrent {le_o}.", "Enfin, {F} vit {le_o} {q}.",
      "{F} avait bon nez et trouva {le_o} {q}."],
     ["« Merci ! » dit {H}. Depuis ce jour, ils sont amis.",
      "{H} dansa de joie. Ils partagèrent du pain et rirent ensemble.",
      "{H} embrassa {F}, et ils jouèrent jusqu'à la nuit.", "Depuis, {H} et {F} jouent ensemble tous les jours."]],
    [["{H} était {h}, et {he} avait peur {w}.", "Il était une fois {h} nommé{e} {H} qui avait peur {w}.",
      "Chaque nuit, {H}, {h}, avait peur {w}.",
      "{H} vivait {p}. C'était {h} qui avait peur {w}."],
     ["« Je suis trop petit{e} », disait souvent {H}.", "{He} se cachait sous une couverture.",
      "{He} n'en parlait à personne.", "Son cœur battait très fort."],
     ["Une nuit, {F}, {f}, appela au secours.", "Alors {he} entendit une voix : {F}, {f}, avait besoin d'aide.",
      "Un soir, {F}, {f}, ne rentra pas.",
      "Quelqu'un cria : « À l'aide ! » C'était {F}, {f}."],
     ["{H} avait peur, mais {he} sortit.", "{He} respira bien fort et ouvrit la porte.",
      "« Je dois y aller », dit {H}, et {he} partit.", "{H} tremblait, mais {he} courut {q}."],
     ["{He} trouva {F} {q} et lui montra le chemin.", "{F} était là. {H} tira très fort, et {F} fut libre.",
      "{H} ramena {F} à la maison.",
      "Ensemble, ils rentrèrent pas à pas."],
     ["« Quel courage ! » dit {F}.", "« Merci, {H} ! » dit {F}.", "{F} sourit. « Tu n'as pas eu peur ! »",
      "Tout le monde dit : « Bravo ! »"],
     ["« J'avais peur, dit {H}, mais j'y suis allé{e}. »", "Depuis, {H} n'a plus peur {w}.",
      "Cette nuit-là, {H} dormit bien.",
      "Le courage, c'est d'avoir peur et d'y aller quand même."]],
    [["{H}, {h}, trouva {o} {q}.", "Un jour de soleil, {H} trouva {o}. C'était {h}.",
      "{H} était {h}. Un jour, une vieille dame lui donna {o}.",
      "Un jour, {h} nommé{e} {H} reçut {o}."],
     ["« C'est à moi, dit {H}. Je ne le prête pas. »", "{He} ne voulait rien montrer à personne.",
      "{He} cacha tout dans une boîte.",
      "« Personne ne doit y toucher », dit {H}."],
     ["{F}, {f}, voulait jouer, mais {H} dit non.", "{F}, {f}, arriva. « Je peux voir ? » « Non ! » dit {H}.",
      "{F}, {f}, voulait jouer aussi. {H} partit en courant.",
      "{H} vit {F}, {f}, et se cacha."],
     ["Mais jouer seul, ce n'est pas drôle.", "Bientôt, {H} se sentit bien seul{e}.", "Les jours étaient longs.",
      "{H} s'assit {p}, tout triste."],
     ["Alors {he} alla voir {F}. « Viens jouer avec moi », dit {H}.",
      "{He} y pensa toute la nuit. Le matin, {he} appela {F}.", "Enfin, {he} montra {le_o} à {F}.",
      "« Pardon, dit {H}. C'est pour nous deux. »"],
     ["Ils jouèrent toute la journée.", "Ils jouèrent et rirent jusqu'au soir.", "{F} était content, et {H} aussi.",
      "{F} apporta un gâteau, et ils le mangèrent ensemble."],
     ["Ce que l'on partage rend heureux deux fois.", "Maintenant, {H} le sait : il vaut mieux partager.",
      "Depuis, {H} partage toujours.",
      "« Avec un ami, c'est bien mieux », dit {H}."]],
]
PLACES = {
    "en": ["in the forest", "by the river", "near the sea", "on a hill", "in a garden", "behind the old mill",
           "at the edge of the village",
           "by the lake", "in the mountains", "under a big tree", "near the market", "in the old tower",
           "on a little island"],
    "fr": ["dans la forêt", "près de la rivière", "au bord de la mer", "sur une colline", "dans un jardin",
           "derrière le vieux moulin",
           "près du village", "au bord du lac", "dans la montagne", "sous un grand arbre", "près du marché",
           "dans la vieille tour", "sur une petite île"],
}
WORRIES = {
    "en": ["the dark", "the storm", "the big river", "loud noises", "the deep forest", "strangers", "the wind"],
    "fr": ["du noir", "de l'orage", "de la grande rivière", "du bruit", "de la forêt profonde", "du vent"],
}
LIKE = {"en": ["small", "little", "clever", "young", "brown", "shy", "kind", "lazy", "curious", "merry", "grey",
               "funny"], "fr": [""]}
NAMES = ["Pip", "Momo", "Tilly", "Bruno", "Nino", "Lulu", "Rosa", "Otto", "Fifi", "Max", "Luna", "Toby", "Mila", "Coco",
         "Benny", "Zaza", "Leo", "Nina", "Oscar", "Ruby", "Felix", "Daisy", "Hugo", "Lola", "Sam", "Bibi", "Poppy",
         "Arlo", "Juno", "Rémi", "Titus", "Oona", "Basil", "Cleo"]
STORY_ASK = {
    "en": ["Tell me a story about {h}.", "Tell me a short story with {h} named {H}.", "I would like a story about {h}.",
           "Write a short story about {h}.",
           "A story, please!", "Can you tell me a story?", "Tell me a bedtime story about {H}.",
           "Please tell a tale about {h}."],
    "fr": ["Raconte-moi une histoire avec {h}.", "Raconte une petite histoire avec {h} nommé{e} {H}.",
           "Je voudrais une histoire avec {h}.",
           "Écris une petite histoire avec {h}.", "Une histoire, s'il te plaît !", "Peux-tu me raconter une histoire ?",
           "Raconte-moi l'histoire de {H}.",
           "Dis-moi un conte avec {h}."],
}


def _story(draw: Draw) -> tuple[str, dict[str, str]]:
    animal, other, thing = draw.word("animal"), draw.word("animal"), draw.word("object")
    hero, friend = draw.random.sample(NAMES, 2)
    place, place2 = draw.random.sample(PLACES[draw.lang], 2)
    values = {"H": hero, "F": friend, "p": place, "q": place2, "w": draw.pick(WORRIES[draw.lang]), "O": thing, "e": ""}
    if draw.lang == "en":
        he, his, him = draw.pick([("he", "his", "him"), ("she", "her", "her")])
        values |= {"h": a(f"{draw.pick(LIKE['en'])} {animal}"), "f": a(other), "f2": a(other).capitalize(),
                   "o": a(thing), "he": he, "his": his,
                   "him": him, "He": he.capitalize(), "His": his.capitalize()}
    else:
        he = "elle" if animal in FEMININE else "il"
        values |= {"h": un(animal), "f": un(other), "o": un(thing), "le_o": le(thing), "he": he, "He": he.capitalize()}
    sentences = [draw.pick(beat).format(**values) for beat in draw.pick(EN if draw.lang == "en" else FR)]
    broken = draw.pick([" ", " ", "\n\n"])
    return broken.join(sentences), values


def story(draw: Draw) -> Document:
    """A story as plain text, with a title now and then."""
    text, values = _story(draw)
    if draw.chance(0.3):
        text = f"# {values['H']} {'and' if draw.lang == 'en' else 'et'} {values['F']}\n\n{text}"
    return Document(text=text)


def story_chat(draw: Draw) -> Document:
    """A story that somebody asked for."""
    text, values = _story(draw)
    return Document(messages=(user(draw.phrase(STORY_ASK[draw.lang]).format(**values)), answer(text)))
