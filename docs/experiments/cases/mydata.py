"""80 sentences with word labels in *stars*, 40 with only sentence labels."""

RAW = """
animal|The *dog* slept under the kitchen table all afternoon.
animal|A grey *cat* watched us from the garden wall.
animal|Two *horses* pulled the old cart up the hill.
animal|My sister keeps a *parrot* that repeats her jokes.
animal|The *elephant* lifted the log with its trunk.
animal|We heard an *owl* calling in the forest at night.
animal|The farmer counted his *sheep* before closing the gate.
animal|A *shark* circled the small boat for an hour.
animal|She found a *frog* in the flower pot this morning.
animal|The *lion* in the zoo ignored every visitor.
animal|Three *rabbits* were eating the lettuce again.
animal|The *wolf* crossed the road and disappeared.
animal|A *spider* built its web across the doorway.
animal|The *cow* gave birth to a healthy *calf* on Sunday.
animal|He photographed a *tiger* from the back of a truck.
animal|The *mouse* ran along the shelf and dropped a cup.
animal|Our *goat* climbed onto the roof of the shed.
animal|An *eagle* was resting on the highest branch.
animal|The *bear* tore open the tent to find the honey.
animal|A *monkey* stole the tourist's sunglasses.
weather|The *rain* did not stop for three days.
weather|Heavy *snow* blocked the mountain road yesterday.
weather|A *thunderstorm* woke the children at midnight.
weather|The *fog* was so thick that the ferry was late.
weather|By noon the *sunshine* had dried the streets.
weather|The *wind* blew the hats off the tourists.
weather|A *hurricane* is expected on the coast by Friday.
weather|There was *frost* on the windows this morning.
weather|The *drought* ruined most of the harvest.
weather|*Hail* damaged the roof of the station.
weather|Grey *clouds* gathered above the valley.
weather|The *storm* knocked out the power in our street.
weather|*Lightning* struck the church tower last night.
weather|A cold *breeze* came through the open window.
weather|The *blizzard* closed every school in the county.
weather|Light *drizzle* fell on the crowd outside the theatre.
weather|The *tornado* lifted a truck off the highway.
weather|The *heatwave* made the office unbearable.
weather|*Mist* covered the lake until nine in the morning.
weather|The *monsoon* arrived two weeks early this year.
sport|The *goalkeeper* stopped the last shot of the evening.
sport|She won the *tennis* tournament for the second time.
sport|The *football* *match* ended without a winner.
sport|His *marathon* time was better than last year.
sport|They play *basketball* behind the school on Saturdays.
sport|The *referee* showed a red card to the captain.
sport|Our *team* lost the final by a single point.
sport|The *swimmer* broke the national record in Rome.
sport|A *boxer* from Dublin took the title.
sport|The *cricket* season starts in the second week of May.
sport|The *coach* asked for one more hour of training.
sport|He scored a *goal* in the last minute.
sport|The *cyclists* crossed the bridge in a long line.
sport|She practises *gymnastics* four times a week.
sport|The *rugby* players sang on the bus home.
sport|The *skier* fell near the end of the slope.
sport|*Hockey* is more popular here than anything else.
sport|The *athletes* marched into the stadium at eight.
sport|The *striker* missed the *penalty* again.
sport|They watched the *golf* championship at the club.
anger|He was *furious* when the letter arrived too late.
anger|She *shouted* at the driver and slammed the door.
anger|The customers were *angry* about the new prices.
anger|His *rage* frightened everyone in the room.
anger|The manager *yelled* at the waiter in front of guests.
anger|I am so *mad* at you that I cannot speak.
anger|Her *fury* grew with every excuse he made.
anger|The crowd was *outraged* by the decision.
anger|He *cursed* and threw the plate against the wall.
anger|She answered with *anger* in her voice.
anger|The neighbours *quarrelled* about the fence all summer.
anger|He *hated* the way they laughed at his brother.
anger|Her *irritated* look told him to leave.
anger|The old man *screamed* at the boys to get out.
anger|They were *annoyed* by the noise from upstairs.
anger|His *temper* cost him the job in the end.
anger|The senator was *enraged* by the question.
anger|She *snapped* at him for being late again.
anger|There was *resentment* in every word of the note.
anger|The *hostile* crowd refused to let the car pass.
"""
SENT = """
animal|Something furry purred on my lap while I was reading.
animal|It barked at the postman and wagged its tail.
animal|The stable smelled of hay and we heard neighing.
animal|They migrate south in a wide V every autumn.
animal|He filled the aquarium and fed them flakes.
animal|The zoo bought two new ones from Kenya.
animal|Its hooves left deep marks in the mud.
animal|We went riding along the beach at dawn.
animal|The vet said the leg would heal in a month.
animal|The nest held four blue eggs.
weather|Take an umbrella, it is pouring outside.
weather|It is freezing and the pipes have burst.
weather|The sky turned black and everything got soaked.
weather|We got sunburnt because there was no shade at all.
weather|The forecast says minus ten for tomorrow.
weather|Visibility on the motorway was below fifty metres.
weather|It was so hot that the tarmac melted.
weather|The roads are icy, drive carefully.
weather|The gusts were strong enough to topple trees.
weather|Puddles everywhere and still no end in sight.
sport|They went into extra time at two all.
sport|He trains six days a week for the Olympics.
sport|The final whistle blew and the fans invaded the pitch.
sport|She served an ace to win the set.
sport|The bench celebrated the three pointer at the buzzer.
sport|He ran the last lap in under a minute.
sport|They were relegated after losing eight in a row.
sport|The transfer cost the club forty million.
sport|She did a perfect vault and landed without a step.
sport|He was knocked out in the second round.
anger|Get out of my house and never come back!
anger|How dare you speak to my mother like that!
anger|He clenched his fists and his face turned red.
anger|I have had enough of your lies!
anger|She tore up the contract and threw it at him.
anger|Nobody treats me like this and gets away with it.
anger|He kicked the chair across the office.
anger|She hung up on him without a word.
anger|If you touch that again you will regret it.
anger|What on earth were you thinking, you idiot!
"""


def words(line):
    concept, text = line.split("|")
    out_w, out_l = [], []
    for w in text.split():
        if "*" in w:
            out_w.append(w.replace("*", ""))
            out_l.append(concept)
        else:
            out_w.append(w)
            out_l.append(None)
    return concept, out_w, out_l


ROWS = [words(l) for l in RAW.strip().splitlines()]
SENTS = [tuple(l.split("|")) for l in SENT.strip().splitlines()]
assert len(ROWS) == 80 and len(SENTS) == 40
